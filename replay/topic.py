"""`titan replay topic DOMAIN… | --all [--force]`: topics written anew from their event stores, after Kafka's disk was lost.

`--all` is every domain whose topic is gone or empty: the others are read through and left alone. All of them are made at once, for
consumers are waited for, who take some ten seconds to notice that a topic is gone (TITAN_KAFKA_REFRESH_S).

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
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import cast

import psycopg
from confluent_kafka import ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
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
LEADERS_S = 60  # until it is known who leads topics that were made just now
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
    [written] = rewrite_all(of, [domain], force, as_json)
    return written


def rewrite_all(of: Settings, wanted: Collection[str], force: bool = False, as_json: bool = False) -> list[Written]:
    """The same for several at once. What this leaves undone when it is killed the relay does, from each position that was set back."""
    try:
        admin = _admin(of)
        heads = {domain: _head(of, domain) for domain in wanted}
        held = {domain: _records(of, admin, domain) for domain in wanted}
        for domain in wanted:
            if (count := held[domain]) and not force:
                raise ReplayError(
                    f"{of.topic(domain)} has {count:,} records (its event store has {heads[domain]:,} events). --force deletes it and "
                    "writes it anew: the platform's own readers notice and lose nothing, others of yours start from its beginning again"
                )
            _fits(of, domain)
        # Raises where this may not be asked, before anything is changed.
        _holding(of, admin, {of.topic(domain) for domain in wanted}, set())
        with ExitStack() as kept_away:
            for domain in wanted:
                kept_away.enter_context(_without_relay(of, domain))
                if held[domain] is None:
                    _forget_copies(of, domain)
            _delete(of, admin, [of.topic(domain) for domain in wanted if held[domain] is not None])
            _left(of, admin, [of.topic(domain) for domain in wanted])
            topics.create(of, wanted)
        for domain in wanted:
            _publish(of, domain, heads[domain], as_json)
    except psycopg.Error as error:
        raise ReplayError(f"the event store: {line(error)}") from error
    except KafkaException as error:
        raise ReplayError(f"Kafka at {of.kafka}: {error.args[0].str()}") from error
    except TimeoutError as error:
        raise ReplayError(f"Kafka at {of.kafka} does not answer: give the command again") from error
    return [_read_back(of, domain, heads[domain], as_json) for domain in wanted]


def lost(of: Settings, domains: Collection[str]) -> list[str]:
    """Those of which events were published, and whose topics, which are there, have never had a record. Raises ReplayError."""
    published, filled = _looked_at(of, domains, _published)
    return [domain for domain in published if domain not in filled]


def forgotten(of: Settings, domains: Collection[str]) -> list[str]:
    """Those whose event stores have never had an event, and whose topics, which are there, have had some. Raises ReplayError."""
    empty, filled = _looked_at(of, domains, lambda of, domain: _last(of, domain) == 0)
    return [domain for domain in empty if domain in filled]


def _looked_at(
    of: Settings, domains: Collection[str], which: Callable[[Settings, str], object]
) -> tuple[list[str], set[str]]:
    """The domains whose event store is such a one, and those of them whose topics have ever had a record. Raises ReplayError."""
    try:
        chosen = [domain for domain in domains if which(of, domain)]
        by_topic = {of.topic(domain): domain for domain in chosen}
        places = [TopicPartition(topic, number) for topic in by_topic for number in range(of.partitions)]
        # Of topics that were made just now a broker may not know yet who leads them.
        ends = topics.offsets(_admin(of), places, OffsetSpec.latest(), LEADERS_S, ANSWER_S)
    except psycopg.Error as error:
        raise ReplayError(f"the event store: {line(error)}") from error
    except KafkaException as error:
        raise ReplayError(f"Kafka at {of.kafka}: {error.args[0].str()}") from error
    return chosen, {by_topic[place.topic] for place, end in ends.items() if end > 0}


def _admin(of: Settings) -> AdminClient:
    return AdminClient({"bootstrap.servers": of.kafka, "log_level": 0, "reconnect.backoff.max.ms": 250})


def _published(of: Settings, domain: str) -> int:
    """The last id that a relay had acknowledged."""
    with psycopg.connect(of.dsn(domain), connect_timeout=5) as connection:
        row = connection.execute("SELECT to_regclass('relay_positions')").fetchone()
        if row is None or row[0] is None:
            return 0
        row = connection.execute("SELECT position FROM relay_positions WHERE domain = %s", [domain]).fetchone()
    return int(row[0]) if row else 0


def _last(of: Settings, domain: str) -> int:
    """The last id of a store."""
    with psycopg.connect(of.dsn(domain), connect_timeout=5) as connection:
        row = connection.execute("SELECT last FROM log_heads WHERE domain = %s", [domain]).fetchone()
    return int(row[0]) if row else 0


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


def _delete(of: Settings, admin: AdminClient, doomed: Collection[str]) -> None:
    for future in (admin.delete_topics(list(doomed), operation_timeout=GONE_S) if doomed else {}).values():
        future.result(GONE_S)
    give_up = time.monotonic() + GONE_S
    while left := sorted(admin.list_topics(timeout=ANSWER_S).topics.keys() & set(doomed)):
        if time.monotonic() > give_up:
            what = "was deleted and is" if len(left) == 1 else "were deleted and are"
            raise ReplayError(f"{', '.join(left)} {what} still there after {GONE_S:.0f} s: give the command again")
        time.sleep(0.05)


def _left(of: Settings, admin: AdminClient, gone: Collection[str]) -> None:
    """Wait until no consumer has a partition of deleted topics. One that kept it would read the new topic on from an old offset."""
    give_up, without = time.monotonic() + NOTICED_S, set[str]()
    while holding := _holding(of, admin, set(gone), without):
        if time.monotonic() > give_up:
            raise ReplayError(
                f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} deleted, and after {NOTICED_S:.0f} s consumers of "
                f"{', '.join(holding)} have not noticed: stop them and give the command again"
            )
        time.sleep(LOOK_S)


def _holding(of: Settings, admin: AdminClient, wanted: set[str], without: set[str]) -> list[str]:
    """Our groups that have a partition of these topics, or are in a rebalance, when nobody can say. `without` grows by those that
    have none."""
    listed = admin.list_consumer_groups(request_timeout=ANSWER_S, states=LIVE).result().valid or []
    ours = [one.group_id for one in listed if one.group_id.startswith(f"{of.namespace}.")]
    asked = [name for name in ours if name not in without]
    found = []
    for name, future in (admin.describe_consumer_groups(asked, request_timeout=ANSWER_S) if asked else {}).items():
        group = future.result()
        its = {at.topic for member in group.members if member.assignment for at in member.assignment.topic_partitions}
        if not its.isdisjoint(wanted) or group.state in REBALANCING:
            found.append(name)
        else:
            without.add(name)
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


def _read_back(of: Settings, domain: str, head: int, as_json: bool, published: int | None = None) -> Written:
    """Raises ReplayError for an event that is not there, or that a reader would drop without having seen it. `published`: those
    behind it may be missing."""
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
    if 0 < (missing := seen.find(0, 1)) <= (head if published is None else published):
        raise ReplayError(f"{of.topic(domain)} lacks notification {missing}: give the command again with --force")
    return Written(domain, head, records)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=ME, description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("domain", nargs="*")
    parser.add_argument("--all", action="store_true", help="every domain whose topic is gone or empty")
    parser.add_argument("--force", action="store_true", help="delete a topic that has records")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    of = settings()
    wanted = domains.chosen(given.domain, given.all)
    if given.all and not given.force:
        wanted = [domain for domain in wanted if not _whole(of, domain, given.json)]
    for done in rewrite_all(of, wanted, given.force, given.json) if wanted else ():
        if given.json:
            tell({"topic": done.domain, "events": done.events, "records": done.records})
        else:
            print(f"{of.topic(done.domain)}: {done.events:,} events are in it, in order")
    return 0


def _whole(of: Settings, domain: str, as_json: bool) -> bool:
    """Whether a topic has records, and so is not made anew. Raises ReplayError for one that lacks some of what was published."""
    try:
        if not _records(of, _admin(of), domain):
            return False
        published = _published(of, domain)
        found = _read_back(of, domain, _head(of, domain), as_json, published)
    except psycopg.Error as error:
        raise ReplayError(f"the event store: {line(error)}") from error
    except KafkaException as error:
        raise ReplayError(f"Kafka at {of.kafka}: {error.args[0].str()}") from error
    if as_json:
        tell({"topic": domain, "events": published, "records": found.records, "kept": True})
    else:
        print(f"{of.topic(domain)}: {published:,} events were published and are in it: it stays")
    return True
