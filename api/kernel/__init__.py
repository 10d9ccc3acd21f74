"""The words of a service. `router = service("wallets", Wallet, wallets)` gives the reads, `@router.post` adds commands.

They are imported when they are first asked for: sagas and fraud rules, too, import the vault and the secrets from this package, and
FastAPI with all that it brings is half of what such a process takes to start, and a quarter of its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api.kernel.words import (
        Amount,
        Body,
        Caller,
        ClickHouse,
        Commands,
        Country,
        Currency,
        Keyed,
        Moment,
        Name,
        Price,
        Problem,
        Quantity,
        Raw,
        Receipt,
        Redis,
        Sku,
        Store,
        Text,
        Vault,
        Views,
        anyone,
        app_of,
        caller,
        rendered,
        service,
    )

__all__ = [
    "Amount",
    "Body",
    "Caller",
    "ClickHouse",
    "Commands",
    "Country",
    "Currency",
    "Keyed",
    "Moment",
    "Name",
    "Price",
    "Problem",
    "Quantity",
    "Raw",
    "Receipt",
    "Redis",
    "Sku",
    "Store",
    "Text",
    "Vault",
    "Views",
    "anyone",
    "app_of",
    "caller",
    "rendered",
    "service",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from api.kernel import words

    return getattr(words, name)
