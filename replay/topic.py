"""`titan replay topic DOMAIN… [--force]`: topics written anew from their event stores, after Kafka's disk was lost.

The relay does the writing, from the log's first event on: it is made to give the domain up, its stored position is set back, the topic
is made anew, and then any relay goes on, one of this command's own if none is running. Events that are stored meanwhile follow in
their order, and no command waits. It is made only when no consumer of the platform has a partition of the old one any more: each is
then assigned the new one's, notices that it is another (its record at the position that was stored is not there) and reads it
from the beginning, dropping what it has seen by its notification id.

At the end the topic is read back: each event once or more, none behind a later one of its partition. A relay that was frozen over
all of this and woke in between could have put one there; then the command says so, and is given again with --force.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import cast

import psycopg
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient
from psycopg import sql

from aggregates.kernel.migrate import names
from infra.kafka import topics
from infra.settings import Settings, settings
from replay import domains
from replay.failures import line
from replay.log import ANSWER_S, ReplayError, ids_of, messages, spans
from replay.progress import Progress, tell
from streams.kernel.migrate import RELAY, make
from streams.relay import Relay

ME = "titan replay topic"  # the name of the session that keeps relays away
LOCK_S = 10
GONE_S = 30.0  # until a deleted topic is no longer listed
NOTICED_S = 60.0  # until all consumers have noticed that a topic is gone: longer than a session that has to run out
LOOK_S = 0.1
STUCK_S = 60.0  # nothing was published for so long
REBALANCING = {ConsumerGroupState.PREPARING_REBALANCING, ConsumerGroupState.COMPLETING_REBALANCING}
LIVE = {ConsumerGroupState.STABLE, *REBALANCING}

HOLDER = """
SELECT l.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(%s, 0)
"""


@dataclass(frozen=True, slots=True)
class Written:
    """A topic as it was read back: `records` of `events`, the first being more when some were published twice."""

    domain: str
    events: int
    records: int


def rewrite(of: Settings, domain: str, force: bool = False, as_json: bool = False) -> Written:
    """Write the topic of a domain anew. Raises ReplayError; before the topic is deleted nothing was changed."""
    admin = AdminClient({"bootstrap.servers": of.kafka, "log_level": 0, "reconnect.backoff.max.ms": 250})
    try:
        head = _head(of, domain)
        held = _records(of, admin, domain)
        if held and not force:
            raise ReplayError(
                f"{of.topic(domain)} has {held:,} records (its event store has {head:,} events). --force deletes it and writes it "
                "anew: the platform's own readers notice and lose nothing, others of yours start from its beginning again"
            )
        _fits(of, domain)
        _holding(of, admin, of.topic(domain), set())  # raises where this may not be asked, before anything is changed
        with _without_relay(of, domain):
            if held is None:
                _forget_copies(of, domain)
            else:
                _delete(of, admin, domain)
            _left(of, admin, domain)
            topics.create(of, [domain])
        _publish(of, domain, head, as_json)
    except psycopg.Error as error:
        raise ReplayError(f"the event store: {line(error)}") from error
    except KafkaException as error:
        raise ReplayError(f"Kafka at {of.kafka}: {error.args[0].str()}") from error
    except TimeoutError as error:
        raise ReplayError(f"Kafka at {of.kafka} does not answer: give the command again") from error
    return _read_back(of, domain, head, as_json)


def _head(of: Settings, domain: str) -> int:
    """The last id of a store whose log has no gap. Raises ReplayError for one that has."""
    query = sql.SQL(
        "SELECT (SELECT last FROM log_heads WHERE domain = {domain}), (SELECT count(*) FROM {events} WHERE notification_id > 0)"
    ).format(**names(domain))
    with psycopg.connect(of.dsn(domain), connect_timeout=5) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    head, count = row
    if head is None or count < head:
        raise ReplayError(
            f"the event store of {domain} has {count:,} of {head or 0:,} events: mend it before its topic"
        )
    return int(head)


def _records(of: Settings, admin: AdminClient, domain: str) -> int | None:
    """How many records a topic has had; None if there is no such topic. Raises ReplayError for another number of partitions."""
    topic = of.topic(domain)
    there = admin.list_topics(timeout=ANSWER_S).topics.get(topic)
    if there is None or there.error is not None:
        return None
    if len(there.partitions) != of.partitions:
        raise ReplayError(f"{topic} has {len(there.partitions)} partitions, and TITAN_PARTITIONS is {of.partitions}")
    return sum(span.end for span in spans(of, [domain], since=None, partial=True))


def _fits(of: Settings, domain: str) -> None:
    """Positions are by partition: with fewer or more of them an event could be taken for one that was seen."""
    with psycopg.connect(of.postgres, connect_timeout=5) as connection:
        row = connection.execute("SELECT to_regclass('projection_positions')").fetchone()
        if row is None or row[0] is None:
            return
        row = connection.execute(
            "SELECT max(partition) FROM projection_positions WHERE topic = %s", [domain]
        ).fetchone()
    if row is not None and row[0] is not None and row[0] >= of.partitions:
        raise ReplayError(
            f"read models know {row[0] + 1} partitions of {domain}, and TITAN_PARTITIONS is {of.partitions}"
        )


@contextmanager
def _without_relay(of: Settings, domain: str) -> Iterator[None]:
    """Be the one that was elected to publish the domain; the relay that was is made to begin anew, as after a lost connection.

    The position is set back first: whenever this is killed, a relay publishes all again, which readers drop.
    """
    key = f"{of.namespace}.relay.{domain}"
    with closing(
        psycopg.connect(of.dsn(domain), autocommit=True, connect_timeout=5, application_name=ME)
    ) as connection:
        make(connection, RELAY)
        if holder := connection.execute(HOLDER, [key]).fetchone():
            if holder[1] == ME:
                raise ReplayError(f"the topic of {domain} is being written anew by another run of this command")
            connection.execute("SELECT pg_terminate_backend(%s)", [holder[0]])
        connection.execute(f"SET lock_timeout = '{LOCK_S}s'".encode())
        # A relay only tries the lock: whoever waits for it gets it first.
        connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [key])
        connection.execute(
            "INSERT INTO relay_positions (domain, position) VALUES (%s, 0) ON CONFLICT (domain) DO UPDATE SET position = 0",
            [domain],
        )
        yield


def _delete(of: Settings, admin: AdminClient, domain: str) -> None:
    topic = of.topic(domain)
    for future in admin.delete_topics([topic], operation_timeout=GONE_S).values():
        future.result(GONE_S)
    give_up = time.monotonic() + GONE_S
    while topic in admin.list_topics(timeout=ANSWER_S).topics:
        if time.monotonic() > give_up:
            raise ReplayError(f"{topic} was deleted and is still there after {GONE_S:.0f} s: give the command again")
        time.sleep(0.05)


def _left(of: Settings, admin: AdminClient, domain: str) -> None:
    """Wait until no consumer has a partition of the deleted topic. One that kept it would read the new topic on from an old offset."""
    topic, give_up, gone = of.topic(domain), time.monotonic() + NOTICED_S, set[str]()
    while holding := _holding(of, admin, topic, gone):
        if time.monotonic() > give_up:
            raise ReplayError(
                f"{topic} is deleted, and after {NOTICED_S:.0f} s consumers of {', '.join(holding)} have not noticed: "
                "stop them and give the command again"
            )
        time.sleep(LOOK_S)


def _holding(of: Settings, admin: AdminClient, topic: str, gone: set[str]) -> list[str]:
    """Our groups that have a partition of a topic, or are in a rebalance, when nobody can say. `gone` grows by those that have none."""
    listed = admin.list_consumer_groups(request_timeout=ANSWER_S, states=LIVE).result().valid or []
    ours = [one.group_id for one in listed if one.group_id.startswith(f"{of.namespace}.")]
    wanted = [name for name in ours if name not in gone]
    found = []
    for name, future in (admin.describe_consumer_groups(wanted, request_timeout=ANSWER_S) if wanted else {}).items():
        group = future.result()
        its = {at.topic for member in group.members if member.assignment for at in member.assignment.topic_partitions}
        if topic in its or group.state in REBALANCING:
            found.append(name)
        else:
            gone.add(name)
    return sorted(found)


def _forget_copies(of: Settings, domain: str) -> None:
    """The dead letters' topic is gone with it: what is parked is to be copied there again."""
    with psycopg.connect(of.postgres, connect_timeout=5) as connection:
        row = connection.execute("SELECT to_regclass('parked')").fetchone()
        if row is not None and row[0] is not None:
            connection.execute("UPDATE parked SET copied = false WHERE topic = %s", [domain])


def _publish(of: Settings, domain: str, head: int, as_json: bool) -> None:
    """Wait until a relay has published up to `head`; one of our own stands by."""
    ids = ids_of(of)
    stop, failed = threading.Event(), list[BaseException]()

    def relay() -> None:
        try:
            Relay(of.dsn(domain), of.kafka, of.topic_prefix, of.namespace, ids, only=[domain]).run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        with (
            psycopg.connect(of.dsn(domain), autocommit=True, connect_timeout=5) as connection,
            Progress(f"topic {domain}", [], as_json, total=head) as progress,
        ):
            at, moved = 0, time.monotonic()
            while at < head:
                row = connection.execute("SELECT position FROM relay_positions WHERE domain = %s", [domain]).fetchone()
                assert row is not None
                if row[0] > at:
                    progress.moved(min(row[0], head) - at, {domain: row[0]})
                    at, moved = row[0], time.monotonic()
                if failed:
                    raise failed[0]
                if time.monotonic() - moved > STUCK_S:
                    raise ReplayError(
                        f"{of.topic(domain)}: nothing was published for {STUCK_S:.0f} s, {head - at:,} events are left: "
                        "the relay goes on with them when Kafka takes them"
                    )
                time.sleep(0.05)
    finally:
        stop.set()
        thread.join()


def _read_back(of: Settings, domain: str, head: int, as_json: bool) -> Written:
    """Raises ReplayError for an event that is not there, or that a reader would drop without having seen it."""
    seen, records = bytearray(head + 1), 0
    newest: dict[int, int] = {}
    its = spans(of, [domain])
    with Progress(f"reading {domain} back", its, as_json) as progress:
        for message in chain.from_iterable(progress.over(domain, messages(of, its))):
            id = int(dict(cast("list[tuple[str, bytes]]", message.headers()))["notification-id"])
            partition = cast(int, message.partition())
            records += 1
            if id > newest.get(partition, 0):
                newest[partition] = id
            elif id > head or not seen[id]:
                raise ReplayError(
                    f"{of.topic(domain)} [{partition}] has notification {id} behind {newest[partition]}: a relay that this command "
                    "did not know of has written to it. Stop all relays and give the command again with --force"
                )
            if id <= head:
                seen[id] = 1
    if (missing := seen.find(0, 1)) > 0:
        raise ReplayError(f"{of.topic(domain)} lacks notification {missing}: give the command again with --force")
    return Written(domain, head, records)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=ME, description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("domain", nargs="*")
    parser.add_argument("--all", action="store_true", help="every domain")
    parser.add_argument("--force", action="store_true", help="delete a topic that has records")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    of = settings()
    for domain in domains.chosen(given.domain, given.all):
        done = rewrite(of, domain, given.force, given.json)
        if given.json:
            tell({"topic": done.domain, "events": done.events, "records": done.records})
        else:
            print(f"{of.topic(domain)}: {done.events:,} events are in it, in order")
    return 0
