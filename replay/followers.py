"""Where sagas, reactors and fraud rules go on after Postgres was lost, from what their groups committed to Kafka.

Their positions were in Postgres. From the topics alone nobody could say what of history they have dealt with: begun at its beginning
they would ask for every effect once more, also for those from before they were first started; begun at its end, whatever was in
flight would be lost. But with each commit to Kafka a follower writes down its watermark, and both outlive Postgres.

They go on where they were, and AGAIN before the last event at the latest. Of what they did in that time the aggregates know, so nothing
comes of asking again; what was done and not recorded (the record had not reached Kafka) is looked up under the same reference. A saga's
own events it reads from their beginning, as when it is first started: each that has not ended is driven on, and asks again for
what it waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from importlib import import_module
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
from confluent_kafka.admin import AdminClient

from aggregates.kernel import domains
from infra.settings import Settings
from replay import verdicts
from replay.log import ANSWER_S, ReplayError, Span, read, since_last, spans
from streams.kernel.migrate import FOLLOWERS, RULES, make
from streams.kernel.rules.found import discover

AGAIN = timedelta(hours=1)
FAUST = "faust"  # the group that the rules are hosted in

WATERMARK = """
INSERT INTO follower_watermarks AS old VALUES (%(follower)s, %(domain)s, %(id)s)
ON CONFLICT (follower, domain) DO UPDATE SET notification_id = EXCLUDED.notification_id
WHERE NOT EXISTS (SELECT FROM follower_positions p WHERE (p.follower, p.domain) = (old.follower, old.domain))
"""
POSITION = "INSERT INTO follower_positions VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
# A database that was migrated before it was filled has everybody at the beginning.
NEW = """
UPDATE follower_watermarks w SET notification_id = %(head)s
WHERE domain = %(domain)s AND notification_id = 0 AND NOT (follower = ANY(%(known)s))
AND NOT EXISTS (SELECT FROM follower_positions p WHERE (p.follower, p.domain) = (w.follower, w.domain))
"""
START = """
INSERT INTO rule_starts AS old VALUES (%s, %s, %s)
ON CONFLICT (rule, domain) DO UPDATE SET notification_id = EXCLUDED.notification_id WHERE old.notification_id = 0
"""

Lane = tuple[str, int]
Connection = psycopg.Connection[Any]


class Committed(NamedTuple):
    """What a group says of a partition: the offset to come, and the watermark of the domain."""

    offset: int
    watermark: int


def resume(of: Settings, connection: Connection, heads: Mapping[str, int]) -> dict[str, list[str]]:
    """Set the positions of all followers that Kafka knows, in the common database; answers with their names by domain.

    Those stored there already stay. `heads`: the last ids of domains that were restored: who is new to Kafka begins behind them.
    Raises ReplayError.
    """
    make(connection, FOLLOWERS)
    make(connection, RULES)
    try:
        found = _committed(of)
    except KafkaException as error:
        raise ReplayError(f"Kafka at {of.kafka}: {error.args[0].str()}") from error
    fed = {domain for its in found.values() for domain, _ in its}
    again = since_last(of, spans(of, fed, partial=True), AGAIN)
    starts = {
        name: {
            lane: span._replace(first=min(its[lane].offset, span.first)) for lane, span in again.items() if lane in its
        }
        for name, its in found.items()
    }
    ids = _ids(of, (span for its in starts.values() for span in its.values()))
    rules = starts.pop(FAUST, {})
    for name, its in starts.items():
        for (domain, partition), span in its.items():
            if name == f"saga.{domain}":
                continue
            mark = max(at.watermark for (same, _), at in found[name].items() if same == domain)
            connection.execute(WATERMARK, {"follower": name, "domain": domain, "id": mark})
            if span.first > 0:
                id = ids[domain, partition, span.first - 1]
                connection.execute(POSITION, (name, domain, partition, id, span.first))
    resumed = {
        domain: sorted(name for name, its in starts.items() if any(same == domain for same, _ in its))
        for domain in fed | heads.keys()
    }
    for domain, head in heads.items():
        connection.execute(NEW, {"domain": domain, "head": head, "known": resumed[domain]})
    _start_rules(connection, rules.values(), ids, heads)
    verdicts.resume(connection)
    return resumed


def _start_rules(
    connection: Connection, begun: Collection[Span], ids: Mapping[tuple[str, int, int], int], heads: Mapping[str, int]
) -> None:
    """Judge again from where the rules go on. What is before only fills their windows."""
    for domain in domains():
        import_module(f"aggregates.{domain}")
    after = dict(heads)
    for domain in {span.domain for span in begun}:
        its = [span for span in begun if span.domain == domain]
        first = [ids[domain, span.partition, span.first] - 1 for span in its if span.records > 0]
        last = [ids[domain, span.partition, span.first - 1] for span in its if span.first > 0]
        after[domain] = min(first) if first else max(last, default=0)
    for rule in discover():
        for domain in after.keys() & {*rule.domains}:
            connection.execute(START, (rule.id, domain, after[domain]))


def _committed(of: Settings) -> dict[str, dict[Lane, Committed]]:
    """By the names of followers, and of the group that rules are in."""
    admin = AdminClient({"bootstrap.servers": of.kafka, "log_level": 0, "reconnect.backoff.max.ms": 250})
    prefix = f"{of.namespace}."
    found: dict[str, dict[Lane, Committed]] = {}
    for one in admin.list_consumer_groups(request_timeout=ANSWER_S).result().valid or ():
        name = one.group_id.removeprefix(prefix)
        if name != one.group_id and (name == FAUST or name.startswith(("saga.", "reactor."))):
            asked = [ConsumerGroupTopicPartitions(one.group_id)]
            [answer] = admin.list_consumer_group_offsets(asked, request_timeout=ANSWER_S).values()
            its = found[name] = {}
            for at in answer.result().topic_partitions:
                if at.topic.startswith(of.topic_prefix) and at.offset >= 0:
                    mark = int(at.metadata) if at.metadata and at.metadata.isdigit() else 0
                    its[at.topic.removeprefix(of.topic_prefix), at.partition] = Committed(at.offset, mark)
    return found


def _ids(of: Settings, wanted: Iterable[Span]) -> dict[tuple[str, int, int], int]:
    """The notification ids of each span's first record and the one before it, by domain, partition and offset."""
    places = {
        (one.domain, one.partition, at) for one in wanted for at in (one.first - 1, one.first) if 0 <= at < one.end
    }
    ids: dict[tuple[str, int, int], int] = {}
    while left := places - ids.keys():
        once = {(domain, partition): Span(domain, partition, at, at + 1) for domain, partition, at in left}
        for batch in read(of, once.values()):
            ids |= {(one.topic, one.partition, one.offset): one.notification_id for one in batch}
        ids |= {(*lane, span.first): ids.get((*lane, span.first), 0) for lane, span in once.items()}  # a hole
    return ids
