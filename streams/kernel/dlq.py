"""Dead letters: `titan dlq list [--json] | retry`, both with [--processor NAME] [--topic DOMAIN] [--key AGGREGATE].

A poison event waits in Postgres with all later events of its aggregate, and a copy goes to `titan.<domain>.dlq`. `retry` applies
a sequence in order, through the same clauses and sink as live, once the cause is mended; it stops at the first event that fails
again, and keeps that and what follows. Its positions are a lane of the sequence's own, moved in the sink's transaction, so that
a retry that is killed and started again applies nothing twice.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Iterable
from importlib import import_module
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra.errors import StackError
from infra.settings import Settings, settings
from projections.kernel.clauses import Projection, projections
from projections.kernel.parking import COLUMNS, Parked, PostgresParking
from projections.kernel.runner import Broken, Delivery, Down, Fenced, Runner
from projections.kernel.sinks import SINKS, sink_of
from schemas import external

log = logging.getLogger(__name__)

DELIVERY_S = 10.0
SHOWN_CHARS = 160  # of an error in the list


class Copier:
    """Publishes parked deliveries to the dead-letter topics, for whoever watches them. Postgres has what counts."""

    def __init__(self, chosen: Settings) -> None:
        self._settings = chosen
        self._producer: Producer | None = None

    def __call__(self, parked: Parked) -> bool:
        """Whether it is there; if not, it is tried again with the next one."""
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        headers: list[tuple[str, str | bytes | None]] = [(n, bytes.fromhex(v)) for n, v in json.loads(parked.headers)]
        headers += [("dlq-processor", parked.processor.encode()), ("dlq-error", parked.error.encode())]
        headers += [("dlq-partition", b"%d" % parked.partition), ("dlq-offset", b"%d" % parked.offset)]
        try:
            if self._producer is None:
                self._producer = Producer(
                    {
                        "bootstrap.servers": self._settings.kafka,
                        "enable.idempotence": True,
                        "message.timeout.ms": int(DELIVERY_S * 1000),
                        "partitioner": "murmur2_random",
                    },
                    logger=log,
                )
            self._producer.produce(
                f"{self._settings.topic(parked.topic)}.dlq",
                parked.value,
                parked.key,
                on_delivery=delivered,
                headers=headers,
            )
            waiting = self._producer.flush(DELIVERY_S + 1)
        except (KafkaException, BufferError) as error:
            log.warning("a parked event is not copied to its topic: %s", error)
            return False
        if failed or waiting:
            log.warning("a parked event is not copied to its topic: %s", failed[0].str() if failed else "no answer")
        return not failed and not waiting

    def close(self) -> None:
        """Each copy was waited for; nothing is left to send."""
        self._producer = None


def parked(
    chosen: Settings, processor: str | None = None, topic: str | None = None, key: str | None = None
) -> list[Parked]:
    """What is parked, sequence by sequence, in the order in which a retry applies it. Raises Down."""
    parking = PostgresParking(chosen.postgres)
    try:
        with parking.transaction() as connection:
            rows = connection.execute(
                f"""SELECT {COLUMNS} FROM parked WHERE (%(p)s::text IS NULL OR processor = %(p)s)
                AND (%(t)s::text IS NULL OR topic = %(t)s) AND (%(k)s::bytea IS NULL OR key = %(k)s)
                ORDER BY processor, topic, key, notification_id""".encode(),
                {"p": processor, "t": topic, "k": key.encode() if key is not None else None},
            ).fetchall()
    finally:
        parking.close()
    return [Parked(*row) for row in rows]


def retry(chosen: Settings, sequence: Parked, of: Iterable[Projection] | None = None) -> tuple[int, str]:
    """Apply the parked events of one aggregate and processor, given by any of them.

    Answers with how many were applied and taken out, and why it stopped before the end, "" if it did not. Raises Down, Broken.
    """
    sink_name, _, name = sequence.processor.partition(".")
    found = [one for one in (projections() if of is None else of) if one.name == name]
    if sequence.notification_id < 0:
        return _forget(chosen, sequence), ""
    if sink_name in ("saga", "reactor"):
        return import_module("streams.sagas").retry(chosen, sequence)  # type: ignore[no-any-return]
    if sink_name in ("processor", "rule"):
        return import_module("streams.faust_app").retry(chosen, sequence)  # type: ignore[no-any-return]
    if sink_name not in SINKS or not found:
        return 0, f"there is no processor {sequence.processor} here"
    kind = Delivery.written_with(external.ids_of(chosen.schema_registry_url))
    parking, sink = PostgresParking(chosen.postgres), sink_of(sink_name, chosen)
    which = [sequence.processor, sequence.topic, sequence.key]
    try:
        with parking.transaction() as connection:  # live workers that meet the aggregate wait for its end
            connection.execute(
                "SELECT 1 FROM parked_sequences WHERE processor = %s AND topic = %s AND key = %s FOR UPDATE", which
            )
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM parked WHERE processor = %s AND topic = %s AND key = %s ORDER BY notification_id".encode(),
                which,
            ).fetchall()
            waiting = [Parked(*row) for row in rows]
            if why := _too_early(Runner(sink, found, [sequence.topic]), waiting):
                return 0, why
            runner = Runner(sink, found, [sequence.topic], sequence=sequence.key.decode("utf-8", "replace"))
            runner.assign({(row.topic, row.partition) for row in waiting})
            done, why = 0, ""
            for row in waiting:
                try:
                    runner.handle([row.delivery(kind)])
                except Fenced as error:
                    why = str(error) or "another retry is at work"
                    break
                except (Down, Broken):
                    raise
                except Exception as error:
                    why = f"{type(error).__name__}: {error}"
                    connection.execute(
                        "UPDATE parked SET attempts = attempts + 1, error = %s "
                        "WHERE processor = %s AND topic = %s AND partition = %s AND notification_id = %s",
                        [why.replace("\0", "?")[:2000], row.processor, row.topic, row.partition, row.notification_id],
                    )
                    break
                done += 1
            gone = [row.notification_id for row in waiting[:done]]
            connection.execute(
                "DELETE FROM parked WHERE processor = %s AND topic = %s AND key = %s AND notification_id = ANY(%s)",
                [*which, gone],
            )
            if not why:
                connection.execute(
                    "DELETE FROM parked_sequences WHERE processor = %s AND topic = %s AND key = %s", which
                )
            return done, why
    finally:
        parking.close()
        sink.close()


def _too_early(live: Runner, waiting: Collection[Parked]) -> str:
    """A worker that died between parking an event and passing it will meet it again: a retry would come before its turn."""
    live.assign({(row.topic, row.partition) for row in waiting})
    for row in waiting:
        if live.lanes[row.topic, row.partition].low < row.notification_id:
            return "the worker has not passed these events yet: try again when it has caught up"
    return ""


def _forget(chosen: Settings, row: Parked) -> int:
    """A record that is none of our events holds nothing to apply; its copy is in the dead-letter topic."""
    parking = PostgresParking(chosen.postgres)
    try:
        with parking.transaction() as connection:
            return connection.execute(
                "DELETE FROM parked WHERE processor = %s AND topic = %s AND partition = %s AND notification_id = %s",
                [row.processor, row.topic, row.partition, row.notification_id],
            ).rowcount
    finally:
        parking.close()


def main(argv: list[str], of: Iterable[Projection] | None = None) -> int:
    """0; 1 when a retry left something parked."""
    parser = argparse.ArgumentParser(
        prog="titan dlq", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("list", "retry"))
    parser.add_argument("--processor", help="as in the list: postgres.wallet")
    parser.add_argument("--topic", help="a domain: wallet")
    parser.add_argument("--key", help="an aggregate's id")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    given = parser.parse_args(argv)
    chosen = settings()
    try:
        waiting = parked(chosen, given.processor, given.topic, given.key)
        if given.what == "list":
            _show(waiting, given.json)
            return 0
        code = 0
        sequences = {(row.processor, row.topic, row.key, min(row.notification_id, 0)): row for row in waiting}
        for row in sequences.values():
            done, why = retry(chosen, row, of)
            code |= bool(why)
            print(f"{row.processor} {row.topic} {_name(row)}: {done} applied{f', then: {why}' if why else ''}")
        return code
    except (Down, Broken) as error:
        raise StackError(str(error)) from error


def _show(waiting: Collection[Parked], as_json: bool) -> None:
    for row in waiting:
        shown: dict[str, Any] = {
            "processor": row.processor, "topic": row.topic, "key": _name(row), "event": row.event_type,
            "notification_id": row.notification_id, "partition": row.partition, "offset": row.offset,
            "attempts": row.attempts, "parked_at": row.parked_at.isoformat(timespec="seconds"), "error": row.error,
        }  # fmt: skip
        if as_json:
            print(json.dumps(shown))
        else:
            shown["error"] = row.error.partition("\n")[0][:SHOWN_CHARS]
            print("{parked_at}  {processor}  {topic}:{notification_id}  {key}  {event}  {error}".format(**shown))
    if not as_json:
        sequences = len({(row.processor, row.topic, row.key) for row in waiting})
        print(f"{len(waiting)} parked, of {sequences} aggregates")


def _name(row: Parked) -> str:
    return row.key.decode("utf-8", "replace")
