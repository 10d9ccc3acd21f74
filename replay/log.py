"""What the topics hold, read in bulk: from offset to offset, in the order of each partition, and not one record past the end.

A span is a part of one partition, fixed before anything is read, so a replay ends although the log grows. A moment becomes an
offset by the records' own times: what lies before the first event later than it. That is a prefix of the log, so no aggregate
is ever seen without its earlier events.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from aggregates.kernel.event import EPOCH
from aggregates.kernel.wire import MICROSECOND
from infra.errors import StackError
from infra.settings import Settings
from projections.kernel.runner import Delivery
from schemas import SchemaError, external
from schemas.external import Ids

log = logging.getLogger(__name__)

T = TypeVar("T")
Make = Callable[[str, int, int, Message], T]  # of domain, partition and offset, and the record itself

ANSWER_S = 10.0
QUIET_S = 1.0
SILENT_S = 30.0  # nothing came for so long, though there is more: the broker is gone
BATCH_MAX = 10_000


def ids_of(of: Settings) -> Ids | None:
    """Those of the external registry that topics are written with, if there is one. Raises `ReplayError`."""
    try:
        return external.ids_of(of.schema_registry_url)
    except SchemaError as error:
        raise ReplayError(str(error)) from error


class ReplayError(StackError):
    """Why a replay can't be done or go on: one line that says what to do. What is live was not touched."""


class Span(NamedTuple):
    """The records of a domain's partition from offset `first` up to, not including, `end`."""

    domain: str
    partition: int
    first: int
    end: int

    @property
    def records(self) -> int:
        return self.end - self.first


def spans(
    of: Settings,
    domains: Collection[str],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    offsets: Mapping[tuple[str, int], int] | None = None,
    partial: bool = False,
) -> list[Span]:
    """All there is now of these domains' topics, or what lies between two moments, by domain and partition.

    `offsets`: ends of some partitions, instead of what there is. `partial`: a log whose beginning is gone will do. Raises `ReplayError` for a topic that is not there, a
    log whose beginning is gone (unless it starts later anyhow), a moment to come, an offset beyond the end, no broker.
    """
    now = datetime.now(UTC)
    for moment in (since, until):
        if moment is not None and moment > now:
            raise ReplayError(f"{moment.isoformat()} is in the future")
    found: list[Span] = []
    with closing(_consumer(of)) as consumer:
        for domain in sorted(domains):
            topic = of.topic(domain)
            try:
                there = consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
                if there.error is not None:
                    raise ReplayError(f"there is no topic {topic}: {there.error.str()}")
                for partition in sorted(there.partitions):
                    low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
                    found.append(Span(domain, partition, low, high))
            except KafkaException as error:
                raise ReplayError(f"Kafka at {of.kafka} does not answer: {error.args[0].str()}") from error
        known = {(span.domain, span.partition): span for span in found}
        for where, offset in (offsets or {}).items():
            if where not in known:
                raise ReplayError(f"there is no partition {where[1]} of {of.topic(where[0])}")
            if not 0 <= offset <= known[where].end:
                raise ReplayError(
                    f"{of.topic(where[0])} [{where[1]}] ends at offset {known[where].end}, before {offset}"
                )
            known[where] = known[where]._replace(end=offset)
        found = list(known.values())
        for span in found:
            if span.first > 0 and since is None and not partial:
                raise ReplayError(
                    f"the beginning of {of.topic(span.domain)} [{span.partition}] is gone: it starts at offset {span.first}. "
                    f"Write the topic anew from the event store: titan replay topic {span.domain}"
                )
        if until is not None:
            found = [span._replace(end=min(span.end, at)) for span, at in _at(of, consumer, found, until).items()]
        if since is not None:
            found = [span._replace(first=max(span.first, at)) for span, at in _at(of, consumer, found, since).items()]
    return [span._replace(first=min(span.first, span.end)) for span in found]


def since_last(of: Settings, wanted: Collection[Span], before: timedelta) -> dict[tuple[str, int], Span]:
    """What the spans hold of the time `before` the last event of all of them, by domain and partition. Raises `ReplayError`."""
    ends = [span._replace(first=span.end - 1) for span in wanted if span.records > 0]
    last = [occurred_at(one) for batch in read(of, ends) for one in batch if one.notification_id]
    if not last:
        return {(span.domain, span.partition): span for span in wanted}
    with closing(_consumer(of)) as consumer:
        found = _at(of, consumer, wanted, max(last) - before)
    return {(span.domain, span.partition): span._replace(first=max(span.first, at)) for span, at in found.items()}


def read(of: Settings, wanted: Collection[Span], batch_max: int = BATCH_MAX) -> Iterator[list[Delivery]]:
    """The records of the spans, in batches. Raises `ReplayError` when the broker is gone for good, or records are."""
    return _read(of, wanted, batch_max, _delivering(of))


def messages(of: Settings, wanted: Collection[Span], batch_max: int = BATCH_MAX) -> Iterator[list[Message]]:
    """The same as `read`, as the client gives them: for who takes the bytes as they are."""
    return _read(of, wanted, batch_max, lambda domain, partition, offset, message: message)


def _read(of: Settings, wanted: Collection[Span], batch_max: int, make: Make[T]) -> Iterator[list[T]]:
    domains = {of.topic(span.domain): span.domain for span in wanted}
    left = {(of.topic(span.domain), span.partition): span.end for span in wanted if span.records > 0}
    missing = sum(span.records for span in wanted if span.records > 0)
    starts = [TopicPartition(of.topic(s.domain), s.partition, s.first) for s in wanted if s.records > 0]
    with closing(_consumer(of)) as consumer:
        if starts:
            consumer.assign(starts)
        heard = time.monotonic()
        while left:
            batch: list[T] = []
            message: Any  # its methods are typed as None, too
            # It waits for its whole time-out unless it gets as many as it asks for. The last come in pieces where offsets have holes.
            for message in consumer.consume(max(1, min(batch_max, missing)), timeout=0.2):
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                end = left.get((topic, partition))
                if (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF and (end or 0) <= offset:
                        left.pop((topic, partition), None)
                    elif error.code() != KafkaError._PARTITION_EOF:
                        _failed(of, message, error)
                    continue
                if end is None:
                    continue
                if offset < end:
                    missing -= 1
                    batch.append(make(domains[topic], partition, offset, message))
                if offset + 1 >= end:
                    del left[topic, partition]
                    consumer.incremental_unassign([TopicPartition(topic, partition)])
            if batch:
                heard = time.monotonic()
                yield batch
                heard = max(heard, time.monotonic())  # what the reader of the batch takes is not the broker's silence
            elif time.monotonic() - heard > SILENT_S and left:
                raise ReplayError(
                    f"nothing came from Kafka at {of.kafka} for {SILENT_S:.0f} s: start again when it is there, this goes on"
                )


def _delivering(of: Settings) -> Make[Delivery]:
    kind = Delivery.written_with(ids_of(of))

    def delivery(domain: str, partition: int, offset: int, message: Any) -> Delivery:
        return kind(domain, partition, offset, message.key() or b"", message.value() or b"", message.headers() or ())

    return delivery


class Tail:
    """Partitions read on from an offset each, for as long as it is wanted: connected, so the last records come at once."""

    def __init__(self, of: Settings, starts: Mapping[tuple[str, int], int]) -> None:
        self._of, self._next, self._delivery = of, dict(starts), _delivering(of)
        self._domains = {of.topic(domain): domain for domain, _ in starts}
        self._consumer, self._asking = _consumer(of), _consumer(of)  # on one connection a question waits behind a fetch
        self._consumer.assign([TopicPartition(of.topic(d), p, max(at, 0)) for (d, p), at in starts.items()])

    def ends(self) -> dict[tuple[str, int], int]:
        """The offset of the last record of each partition now; -1 for none."""
        try:
            return {
                (domain, partition): self._asking.get_watermark_offsets(
                    TopicPartition(self._of.topic(domain), partition), timeout=ANSWER_S
                )[1]
                - 1
                for domain, partition in self._next
            }
        except KafkaException as error:
            raise ReplayError(f"Kafka at {self._of.kafka} does not answer: {error.args[0].str()}") from error

    def until(self, reach: Mapping[tuple[str, int], int]) -> Iterator[list[Delivery]]:
        """What comes next, until these records (by domain and partition), which are there, have come too."""
        heard = time.monotonic()
        while any(self._next.get(lane, offset + 1) <= offset for lane, offset in reach.items()):
            batch = []
            message: Any
            for message in self._consumer.consume(1_000, timeout=0.02):
                error, offset = message.error(), message.offset()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    _failed(self._of, message, error)
                    continue
                lane = self._domains[message.topic()], message.partition()
                if error is None:
                    batch.append(self._delivery(*lane, offset, message))
                    self._next[lane] = offset + 1
                else:  # with holes at the end of the log, where no record will come
                    self._next[lane] = max(self._next[lane], offset)
            if batch:
                heard = time.monotonic()
                yield batch
            elif time.monotonic() - heard > QUIET_S:
                self._look(reach)
                if time.monotonic() - heard > SILENT_S:
                    raise ReplayError(f"nothing came from Kafka at {self._of.kafka} for {SILENT_S:.0f} s")

    def _look(self, reach: Mapping[tuple[str, int], int]) -> None:
        """Raise `ReplayError` where the topic ends before what is waited for."""
        for (domain, partition), end in self.ends().items():
            if end < reach.get((domain, partition), -1):
                raise ReplayError(
                    f"the live read model has seen offset {reach[domain, partition]} of {self._of.topic(domain)} [{partition}], "
                    f"which ends at {end}: the topic was made anew or cut off. Nothing was changed"
                )

    def close(self) -> None:
        self._consumer.close()
        self._asking.close()


def occurred_at(delivery: Delivery) -> datetime:
    """When the event happened. Raises KeyError, ValueError for a record that is not ours."""
    return EPOCH + int(dict(delivery.headers)["occurred-at"]) * MICROSECOND


def _at(of: Settings, consumer: Consumer, found: Collection[Span], moment: datetime) -> dict[Span, int]:
    """For each span the offset of the first event that is later than the moment; its end if there is none."""
    millis = (moment - EPOCH) // MICROSECOND // 1000
    asked = [TopicPartition(of.topic(span.domain), span.partition, millis) for span in found]
    try:
        answers = consumer.offsets_for_times(asked, timeout=ANSWER_S)
    except KafkaException as error:
        raise ReplayError(f"Kafka at {of.kafka} does not answer: {error.args[0].str()}") from error
    by_place = {(one.topic, one.partition): one.offset for one in answers}
    found_at: dict[Span, int] = {}
    for span in found:
        offset = by_place[of.topic(span.domain), span.partition]
        if offset < 0:  # none so late
            found_at[span] = span.end
            continue
        # Kafka knows milliseconds, events microseconds: look on from there.
        found_at[span] = span.end
        for batch in read(of, [span._replace(first=min(offset, span.end))], 500):
            later = next((one.offset for one in batch if occurred_at(one) > moment), None)
            if later is not None:
                found_at[span] = later
                break
    return found_at


def _consumer(of: Settings) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": of.kafka,
            "group.id": f"{of.namespace}.replay",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "check.crcs": True,
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 8 * 1024,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 0,
        },
        logger=log,
    )


def _failed(of: Settings, message: Message, error: KafkaError) -> None:
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise ReplayError(f"records of {message.topic()} [{message.partition()}] are gone: {error.str()}")
    if error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._BAD_MSG):
        raise ReplayError(f"{message.topic()} [{message.partition()}] can't be read: {error.str()}")
    log.debug("%s: %s", of.kafka, error.str())  # the library tries again; SILENT_S ends that
