"""Who may import whom, checked by import-linter in `titan test`: the rule is `refusal`, one line a folder."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

KERNEL = "kernel"
LEVEL = {"schemas": 0, "aggregates": 1, "projections": 2, "streams": 3, "api": 4, "replay": 4, "infra": 5}
FOR_ALL = ("settings", "errors", "logs", "kafka")  # the modules of infra/ that the platform itself uses


def refusal(importer: str, imported: str, domains: frozenset[str]) -> str | None:
    """Why module `importer` may not import module `imported`, or None. `domains` are the modules of aggregates/."""
    (here, mine), (there, theirs) = _parts(importer), _parts(imported)
    if here == there and mine == theirs:
        return None
    if here == "schemas":
        return None if there == "schemas" else "schemas/ imports nothing of ours"
    if there == "infra":
        return (
            None
            if theirs in FOR_ALL or here in ("infra", "replay")
            else f"only {', '.join(FOR_ALL)} of infra/ are for all"
        )
    assembles = (
        mine != KERNEL and mine not in domains
    )  # an entry point, a saga: it may put kernels of any folder together
    if LEVEL[there] > LEVEL[here] and not (assembles and theirs == KERNEL):
        return f"{here}/ is below {there}/"
    if theirs not in domains:
        return None
    if mine == KERNEL:
        return "a kernel imports no domain"
    if here == there == "aggregates":
        return "aggregates never import each other"
    if here in ("streams", "infra", "replay"):
        return None if there == "aggregates" else f"{here}/ imports aggregates, not {there}/"
    if (mine == theirs and there == "aggregates") or (here == "api" and there == "projections"):
        return None
    return "a domain imports its own aggregate, and only api/ also projections"


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
