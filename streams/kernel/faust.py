"""Hosts of processors in a Faust app: it has the consumer group, the fetching and the back-pressure; we have the positions.

Faust's own offsets are for display. Whenever partitions are assigned (or Faust seeks "to committed" for another reason) they are read
from where the hosts are stored; what Faust drops, repeats or brings out of order around that is sorted out by the hosts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import faust
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from faust.transport.drivers import aiokafka
from faust.types import TP

from infra.settings import Settings
from projections.kernel.runner import Delivery, Down
from streams.kernel.lanes import Log, Partitioned, Where

log = logging.getLogger(__name__)

BATCH_MAX = 1_000  # records handled at once, and fetched at once
REQUEST_S = 30.0  # at least: Faust takes no longer session than that
ASK_S = 10.0  # for an answer to a question beside the consumer
LOOK_S = 5.0  # between two looks of the watchdog
STALLED = 4  # exit code

Hosts = Sequence[Partitioned]


def group(settings: Settings) -> str:
    """The consumer group."""
    return f"{settings.namespace}.faust"


class Records(Log):
    """The topics as the hosts see them: through Faust's consumer, and beside it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.app: faust.App | None = None

    def tp(self, where: Where) -> TP:
        return TP(self._settings.topic(where[0]), where[1])

    async def peek(self, offsets: Mapping[Where, int]) -> Mapping[Where, tuple[int, int]]:
        return await asyncio.to_thread(self._peek, offsets)

    def _peek(self, offsets: Mapping[Where, int]) -> dict[Where, tuple[int, int]]:
        """With a consumer of its own, so that nothing that Faust has on its way is mistaken for the answer."""
        asked = {self.tp(where): where for where in offsets}
        found: dict[Where, tuple[int, int]] = {}
        consumer = side_consumer(self._settings, **{"enable.partition.eof": True, "fetch.message.max.bytes": 65_536})
        try:
            consumer.assign([TopicPartition(*tp, offsets[where]) for tp, where in asked.items()])
            until = time.monotonic() + ASK_S
            while asked:
                if time.monotonic() > until:
                    raise Down("Kafka does not answer")
                message = consumer.poll(0.5)
                if message is None:
                    continue
                error = message.error()
                if error and error.code() != KafkaError._PARTITION_EOF:
                    raise Down(f"Kafka: {error.str()}")
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                assert topic is not None and partition is not None and offset is not None
                where = asked.pop(TP(topic, partition), None)
                if where and not error:
                    record = delivery(where, offset, message.key(), message.value(), message.headers())
                    found[where] = offset, record.notification_id
        except KafkaException as error:
            raise Down(f"Kafka: {error}") from error
        finally:
            consumer.close()
        return found

    async def seek(self, where: Where, offset: int) -> None:
        assert self.app is not None
        if self.tp(where) in self.app.consumer.assignment():
            with suppress(TimeoutError):  # whoever misses the records asks again; timers don't wait for Kafka
                async with asyncio.timeout(ASK_S):
                    await self.app.consumer.seek_wait({self.tp(where): offset})

    def end(self, where: Where) -> int | None:
        assert self.app is not None
        with suppress(Exception):  # of aiokafka's, for a partition that is being taken away
            return self.app.consumer.highwater(self.tp(where))
        return None


def delivery(where: Where, offset: int, key: Any, value: Any, headers: Any) -> Delivery:
    return Delivery(*where, offset=offset, key=key or b"", value=value or b"", headers=headers or ())


def side_consumer(settings: Settings, **config: Any) -> Consumer:
    """A consumer that asks and never joins the group."""
    return Consumer(
        {
            "bootstrap.servers": settings.kafka,
            "group.id": group(settings),
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "reconnect.backoff.max.ms": 1_000,
            "queued.max.messages.kbytes": 1024,
            **config,
        },
        logger=log,
    )


class _Consumer(aiokafka.Consumer):
    """Starts where the hosts are stored."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        transport = self.transport
        assert isinstance(transport, _Transport)
        tps = self.assignment()
        first = await self.earliest_offsets(*tps) if tps else {}
        offsets = {TP(*tp): offset for tp, offset in first.items()}
        starts: dict[TP, int] = {}
        for host in transport.hosts:
            mine = {transport.where(tp): offset for tp, offset in offsets.items()}
            for where, start in (await host.assign({w: o for w, o in mine.items() if w[0] in host.topics})).items():
                tp = transport.records.tp(where)
                starts[tp] = min(start, starts.get(tp, start))
        if starts:
            await self.seek_wait(starts)
        return starts


class _Transport(aiokafka.Transport):
    Consumer = _Consumer

    def __init__(self, app: faust.App, settings: Settings, hosts: Hosts, records: Records) -> None:
        super().__init__(app.conf.broker_consumer, app)
        self.settings, self.hosts, self.records = settings, hosts, records

    def where(self, tp: TP) -> Where:
        return tp.topic.removeprefix(self.settings.topic_prefix), tp.partition


class _App(faust.App):
    def _create_directories(self) -> None:
        """None are needed: no table of Faust's is used."""


def make_app(
    settings: Settings,
    hosts: Hosts,
    records: Records,
    failed: Callable[[BaseException], None],
    loop: asyncio.AbstractEventLoop,
) -> faust.App:
    """A Faust app with one agent a host. `failed` is told of an error that its process should end for."""
    app = _App(
        group(settings),
        broker=";".join(f"kafka://{server}" for server in settings.kafka.split(",")),
        loop=loop,
        autodiscover=False,
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        broker_session_timeout=settings.kafka_session_s,
        broker_heartbeat_interval=settings.kafka_session_s / 4,
        broker_request_timeout=max(REQUEST_S, settings.kafka_session_s),
        consumer_group_instance_id=settings.member(group(settings)).get("group.instance.id"),
        broker_max_poll_records=BATCH_MAX,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=round(1_000 * settings.kafka_refresh_s),
        stream_wait_empty=False,  # what is at work when partitions go is stored or fenced
        stream_buffer_maxsize=2 * BATCH_MAX,
    )
    records.app = app
    app.transport = transport = _Transport(app, settings, hosts, records)

    @app.on_partitions_revoked.connect
    async def revoked(*_: object, **__: object) -> None:
        for host in hosts:
            host.release()

    for host in hosts:
        _agent(app, transport, host, failed)
    return app


def _agent(app: faust.App, transport: _Transport, host: Partitioned, failed: Callable[[BaseException], None]) -> None:
    topics = [transport.settings.topic(topic) for topic in host.topics]

    @app.agent(app.topic(*topics, key_serializer="raw", value_serializer="raw"), name=host.name)
    async def agent(stream: Any) -> AsyncIterator[None]:
        # Batches are what has come while the one before was stored: `take` would wait, and wake up for nothing when all is quiet.
        batch: list[Delivery] = []
        waiting, generation = stream.channel.queue, None
        try:
            async for event in stream.events():
                record = event.message
                if record.generation_id != generation:
                    generation, batch = (
                        record.generation_id,
                        [],
                    )  # partitions have moved: they are read from where they are stored
                where = transport.where(record.tp)
                batch.append(delivery(where, record.offset, record.key, record.value, record.headers))
                if len(batch) >= BATCH_MAX or waiting.empty():
                    await host.handle(batch)
                    batch = []
        except Exception as error:
            failed(error)
            raise
        return
        yield  # an agent is a generator


class Stalls:
    """Which partitions have not moved for too long, although there is something to read."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[Where, tuple[int, float]] = {}

    def look(self, progress: Mapping[Where, int], ends: Mapping[Where, int], now: float) -> list[Where]:
        """`progress` holds the offsets to come, `ends` those after the last records, `now` seconds of a steady clock."""
        self._since = {
            where: self._since[where]
            if where in self._since and self._since[where][0] == at < ends.get(where, 0)
            else (at, now)
            for where, at in progress.items()
        }
        return [where for where, (_, since) in self._since.items() if now - since > self._after_s]


class Watchdog(threading.Thread):
    """Ends the process when it does not go on although there is more to read: known to happen to Faust and its driver.

    A thread of its own, with a client of its own: whatever hangs, it does not. A process that has no partitions looks at those of all.
    """

    def __init__(
        self, settings: Settings, hosts: Hosts, stalled_s: float, end: Callable[[int], object] = os._exit
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._settings, self._hosts, self._end = settings, hosts, end
        self._records = Records(settings)
        self._stalls = [Stalls(stalled_s) for _ in hosts]
        self._topics = sorted({topic for host in hosts for topic in host.topics})

    def run(self) -> None:
        consumer = side_consumer(self._settings)
        while True:
            time.sleep(LOOK_S)
            with suppress(KafkaException):  # it is away, or busy: no time to judge
                self._look(consumer)

    def _look(self, consumer: Consumer) -> None:
        committed: dict[Where, int] | None = None
        ends: dict[Where, int] = {}
        for host, stalls in zip(self._hosts, self._stalls, strict=True):
            progress = {where: lane.next for where, lane in host.lanes.copy().items()}
            if not progress:
                committed = self._committed(consumer) if committed is None else committed
                progress = {where: at for where, at in committed.items() if where[0] in host.topics}
            for where in progress.keys() - ends.keys():
                _, ends[where] = consumer.get_watermark_offsets(TopicPartition(*self._records.tp(where)), timeout=ASK_S)
            if host.waiting or host.suspended:
                progress = {}
            if stalled := stalls.look(progress, ends, time.monotonic()):
                log.critical("ALARM: %s does not go on in %s: the process ends, to begin anew", host.name, stalled)
                self._end(STALLED)

    def _committed(self, consumer: Consumer) -> dict[Where, int]:
        """How far the group has come in all partitions."""
        wanted = []
        for topic in map(self._settings.topic, self._topics):
            wanted += [
                TopicPartition(topic, number) for number in consumer.list_topics(topic, ASK_S).topics[topic].partitions
            ]
        found = consumer.committed(wanted, timeout=ASK_S) if wanted else []
        return {
            (one.topic.removeprefix(self._settings.topic_prefix), one.partition): max(0, one.offset) for one in found
        }
