"""Who may import whom, checked by import-linter in `titan test`: the rule is `refusal`, one line a folder."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

KERNEL = "kernel"
OURS = ("aggregates", "api", "infra", "projections", "replay", "schemas", "streams")


def refusal(importer: str, imported: str, domains: frozenset[str]) -> str | None:
    """Why module `importer` may not import module `imported`, or None. `domains` are the modules of aggregates/."""
    (here, mine), (there, theirs) = _parts(importer), _parts(imported)
    if here == there and mine == theirs:
        return None
    if here == "schemas":
        return None if there == "schemas" else "schemas/ imports nothing of ours"
    if there in ("schemas", "infra"):
        return (
            None
            if there == "schemas" or theirs in ("settings", "errors", "kafka") or here in ("infra", "replay")
            else ("only infra.settings is for others")
        )
    downward = {"aggregates": 0, "projections": 1, "streams": 2, "api": 3, "replay": 3, "infra": 4}
    if downward[there] > downward[here] and not (
        here == "infra" or (theirs == KERNEL and mine not in (KERNEL, *domains))
    ):
        return f"{here}/ is below {there}/"
    if theirs not in domains or (there == "streams" and theirs == "rules"):
        return None  # a kernel, an entry point
    if mine == KERNEL:
        return "a kernel imports no domain"
    if here == "aggregates":
        return "aggregates never import each other"
    if here in ("streams", "infra", "replay"):
        return None if there == "aggregates" else f"{here}/ imports aggregates, not {there}/"
    if mine == theirs and (there == "aggregates" or here == "api"):
        return None
    return "a domain imports its own aggregate, and only api/ also its own projection"


def _parts(module: str) -> tuple[str, str]:
    folder, _, rest = module.partition(".")
    return folder, rest.partition(".")[0]


class Domains(Contract):
    """`refusal` over every import in the graph."""

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        domains = frozenset(_parts(module)[1] for module in graph.modules if module.startswith("aggregates.")) - {
            KERNEL
        }
        broken = [
            f"{importer} -> {imported}: {why}"
            for importer in sorted(graph.modules)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if (why := refusal(importer, imported, domains))
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(line)
