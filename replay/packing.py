"""Records packed as rows of an event store, with what they claim and time, by several processes: each has some of the partitions."""

from __future__ import annotations

import gc
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from infra.settings import ROOT, Settings
from replay import domains, rows
from replay.build import INLINE_MAX, cores, shared
from replay.claims import Notes
from replay.failures import said
from replay.loading import given
from replay.log import ReplayError, Span, messages
from schemas.external import Ids

ENDS = 64  # records of a batch, its last ones, that tell how far each partition is
PIPE_BYTES = 1024 * 1024  # as much as Linux gives to anybody
BATCH_MAX = 500  # records: with what is made of them they stay in a core's own cache, which is a quarter of the time
AHEAD_MAX = 100  # batches that wait to be written


class Job(NamedTuple):
    """Parts of one domain's topic. `ids`: an external registry's, if there is one."""

    settings: Settings
    domain: str
    spans: list[Span]
    ids: Ids | None


class Packed(NamedTuple):
    """What a batch came to: rows in COPY's binary format, apart from those whose id is not above all before it in its partition
    (`late`), and lines in its text format for `Derived`. `positions` are next offsets by "domain:partition"."""

    records: int
    positions: dict[str, int]
    rows: bytes
    late: bytes
    duplicates: int
    foreign: int
    unreadable: int
    claimed: bytes
    timed: bytes


def packed(job: Job) -> Generator[Packed, None, None]:
    """All of it, by as many processes as there are cores; little of it by this one. Raises ReplayError."""
    count = min(cores(), sum(span.records > 0 for span in job.spans))
    if count < 2 or sum(span.records for span in job.spans) <= INLINE_MAX:
        yield from pack(job)
        return
    told: queue.Queue[Packed | str | None] = queue.Queue(AHEAD_MAX)
    workers = [Worker(job._replace(spans=group), told) for group in shared(job.spans, count)]
    try:
        left = len(workers)
        while left:
            one = told.get()
            if isinstance(one, str):
                raise ReplayError(one)
            if one is None:
                left -= 1
            else:
                yield one
    finally:
        for worker in workers:
            worker.end(told)


class Worker:
    """A process at a job, and the thread that hears it."""

    def __init__(self, job: Job, told: queue.Queue[Packed | str | None]) -> None:
        command = [sys.executable, "-m", "replay.packing"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, pipesize=PIPE_BYTES
        )
        assert self.process.stdin is not None
        pickle.dump(job, self.process.stdin)
        self.process.stdin.flush()  # and not closed: its end tells the process of ours
        self._thread = threading.Thread(target=self._hear, args=(told,), daemon=True)
        self._thread.start()

    def _hear(self, told: queue.Queue[Packed | str | None]) -> None:
        assert self.process.stdout is not None
        said: Any = ""
        try:
            while isinstance(said := pickle.load(self.process.stdout), Packed):
                told.put(said)
        except (EOFError, pickle.UnpicklingError):
            said = f"a worker ended with {self.process.wait()}: start again"
        told.put(said)

    def end(self, told: queue.Queue[Packed | str | None]) -> None:
        self.process.kill()
        while self._thread.is_alive():  # it may wait for room
            try:
                told.get(timeout=0.05)
            except queue.Empty:
                self._thread.join(0.05)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def pack(job: Job) -> Iterator[Packed]:
    """The same in this process."""
    notes, last = Notes(job.domain), {span.partition: 0 for span in job.spans}
    for batch in messages(job.settings, job.spans, BATCH_MAX):
        fresh: list[bytes] = []
        late: list[bytes] = []
        foreign = 0
        for message in batch:
            key, value, headers = rows.record(message)
            partition: Any = message.partition()
            try:
                if job.ids is not None:
                    value = job.ids.stored(value)
                id, type, row = rows.packed(key, value, headers)
            except ValueError:  # whoever wrote it, it never was in the event store
                foreign += 1
                continue
            if id > last[partition]:
                last[partition] = id
                fresh.append(row)
            else:
                late.append(row)
            if type not in notes.plain:
                notes.take(id, type, key, value, headers)
        ends = {f"{job.domain}:{message.partition()}": (message.offset() or 0) + 1 for message in batch[-ENDS:]}
        unreadable, claimed, timed = notes.taken()
        yield Packed(
            len(batch), ends, b"".join(fresh), b"".join(late), len(late), foreign, unreadable, claimed, timed
        )  # fmt: skip


def main() -> int:
    job: Job = given()
    domains.chosen([job.domain], False)
    gc.freeze()  # nothing of a batch outlives it, and cycles there are none
    gc.set_threshold(100_000, 50, 100)

    def tell(what: Packed | str | None) -> None:
        pickle.dump(what, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
        sys.stdout.buffer.flush()

    try:
        with said():
            for one in pack(job):
                tell(one)
    except ReplayError as error:
        tell(str(error))
        return 1
    tell(None)
    return 0


if __name__ == "__main__":
    from replay.packing import main as start  # by the module's name, under which what it says is pickled

    sys.exit(start())
