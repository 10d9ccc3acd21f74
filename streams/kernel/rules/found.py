"""Where rules come from: the modules of `streams/rules/`, and the entry points of `titan.fraud_rules` of whatever is installed.

A module or an entry point that can't be loaded, or brings a rule under a name that is taken, is left out with an ALARM: somebody's
broken package must not stop the others' rules.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from streams.kernel.rules.rule import Rule

log = logging.getLogger(__name__)

FOLDER = "streams.rules"
GROUP = "titan.fraud_rules"


class NoRule(Exception):
    """Why a file has no rule to run: one line."""


def discover() -> list[Rule[Any]]:
    """Every rule there is, by name. An entry point names a rule, or a module of rules."""
    found: dict[str, Rule[Any]] = {}
    for where, load in _sources():
        try:
            rules = rules_in(load())
        except Exception as error:
            log.error("ALARM: %s has no rules to run: %s: %s", where, type(error).__name__, error)
            continue
        for one in rules:
            if found.setdefault(one.name, one) is not one:
                log.error("ALARM: %s: there is a rule %s already; this one is left out", where, one.name)
    return sorted(found.values(), key=lambda one: one.name)


def _sources() -> Iterator[tuple[str, Callable[[], object]]]:
    folder = import_module(FOLDER)
    for module in sorted(pkgutil.iter_modules(folder.__path__), key=lambda module: module.name):
        name = f"{FOLDER}.{module.name}"
        yield name, lambda name=name: import_module(name)  # type: ignore[misc]
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        yield f"{GROUP}: {point.name} = {point.value}", point.load


def rules_in(of: object) -> list[Rule[Any]]:
    """The rules that a module has, or the rule that it is. Raises `NoRule`."""
    values = vars(of).values() if isinstance(of, ModuleType) else [of]
    found = {id(one): one for one in values if isinstance(one, Rule)}
    if not found:
        raise NoRule(f"{getattr(of, '__name__', of)} has no function under @rule")
    return list(found.values())


def from_file(file: Path) -> list[Rule[Any]]:
    """The rules of a file that is not deployed. Raises `NoRule` saying what is wrong with it."""
    spec = spec_from_file_location(f"titan_rule_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise NoRule(f"{file} is no Python file")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise NoRule(f"{file} can't be loaded: {type(error).__name__}: {error}") from error
    return rules_in(module)
