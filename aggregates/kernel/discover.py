"""Which domains there are: nobody keeps a list of them."""

from __future__ import annotations

from pkgutil import iter_modules

import aggregates


def domains() -> list[str]:
    """The modules of aggregates/ beside the kernel, by name; none of them is imported."""
    return sorted(module.name for module in iter_modules(aggregates.__path__) if module.name != "kernel")
