"""Event topics: one a domain and one for its dead letters, kept for ever, replicated as the settings say."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from confluent_kafka.cimpl import NewTopic

from infra.errors import StackError
from infra.settings import Settings

DEAD_LETTERS = ".dlq"
ANSWER_S = 30
OFFSETS_S = 10  # for one question about them
LOOK_S = 0.1
NO_LEADER_YET = (
    KafkaError._NOENT,  # the metadata name no leader
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)
PARTITIONS_MORE = (
    "a key's events would move to another partition and lose their order: make a new prefix and replay into it"
)


def names(settings: Settings, domains: Iterable[str]) -> list[str]:
    """`titan.order` and `titan.order.dlq` for each domain."""
    return [f"{settings.topic(domain)}{suffix}" for domain in domains for suffix in ("", DEAD_LETTERS)]


def create(settings: Settings, domains: Iterable[str], answer_s: float = ANSWER_S) -> list[str]:
    """Create the topics that are missing and return the names of those that this call made. Safe to run at any time, by several at once.

    Raises StackError when Kafka can't be reached, refuses, or has a topic with another number of partitions.
    """
    wanted = names(settings, domains)
    config = {
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "cleanup.policy": "delete",
        "min.insync.replicas": str(settings.min_insync_replicas),
        "unclean.leader.election.enable": "false",
        "message.timestamp.type": "CreateTime",
        "max.message.bytes": str(4 * 1024 * 1024),
    }
    try:
        # The broker may still be starting: a refused connection is tried again, not told of.
        admin = AdminClient({"bootstrap.servers": settings.kafka, "log_level": 0, "reconnect.backoff.max.ms": 250})
        there = admin.list_topics(timeout=answer_s).topics
        for name in wanted:
            if name in there and len(there[name].partitions) != settings.partitions:
                raise StackError(
                    f"topic {name} has {len(there[name].partitions)} partitions and TITAN_PARTITIONS is {settings.partitions}: "
                    + PARTITIONS_MORE
                )
        new = [
            NewTopic(name, num_partitions=settings.partitions, replication_factor=settings.replication, config=config)
            for name in wanted
            if name not in there
        ]
        made = []
        # A broker may not have heard yet of topics that were made a moment ago: the controller says what is new.
        for name, future in admin.create_topics(new, operation_timeout=answer_s).items() if new else ():
            try:
                future.result(answer_s)
                made.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    except KafkaException as error:
        raise StackError(f"can't create topics at {settings.kafka}: {error.args[0].str()}") from error
    return made


def offsets(
    admin: AdminClient, places: Collection[TopicPartition], spec: OffsetSpec, leaders_s: float, others_s: float = 0.0
) -> dict[TopicPartition, int]:
    """The first or last offsets of partitions. Raises KafkaException.

    Those whose leader is being chosen (new ones, a broker that came back) are asked again for `leaders_s` seconds at most, those
    that answer with another error for `others_s`.
    """
    began, found = time.monotonic(), dict[TopicPartition, int]()
    while missing := [place for place in places if place not in found]:
        for place, answer in admin.list_offsets(dict.fromkeys(missing, spec), request_timeout=OFFSETS_S).items():
            try:
                found[place] = answer.result().offset
            except KafkaException as error:
                patience_s = leaders_s if error.args[0].code() in NO_LEADER_YET else others_s
                if time.monotonic() >= began + patience_s:
                    raise
        if len(found) < len(places):
            time.sleep(LOOK_S)
    return found
