"""What a kill leaves behind in a MergeTree table's log of deduplication tokens, put right before the engine starts."""

from __future__ import annotations

from pathlib import Path

ADDED, DROPPED = "1", "2"  # operations in a deduplication log; a line is operation, part, token, tab between them


def forget_unfinished_inserts(store: Path) -> int:
    """Take back the tokens of inserts that were killed before their rows were there; returns how many.

    The engine writes an insert's token first and then renames its part from `tmp_insert_…` (seen by strace, 26.9.2). Killed
    in between it would drop the client's repeated insert as a duplicate, and the rows would be lost for good.
    """
    repaired = 0
    for folder in store.glob("store/*/*/deduplication_logs"):
        table = folder.parent
        unfinished = {part.name.removeprefix("tmp_insert_") for part in table.glob("tmp_insert_*")}
        unfinished = {name for name in unfinished if not (table / name).exists()}
        logs = sorted(folder.glob("deduplication_log_*.txt"), key=lambda log: int(log.stem.rpartition("_")[2]))
        if not unfinished or not logs:
            continue
        tokens: dict[str, str] = {}
        for line in "".join(log.read_text() for log in logs).splitlines():
            operation, part, token = line.split("\t")
            if operation == ADDED:
                tokens[token] = part
            else:
                tokens.pop(token, None)
        lost = [f"{DROPPED}\t{part}\t{token}\n" for token, part in tokens.items() if part in unfinished]
        with logs[-1].open("a") as log:
            log.writelines(lost)
        repaired += len(lost)
    return repaired
