"""The baseline of `replay`: a confluent-kafka consumer that only decodes the Avro. `python -m tests.bench.decoding BROKER TOPIC EVENTS`.

In batches, with fastavro's compiled reader and the schema that each body names. Writes the events a second from its first batch to
its last.
"""

from __future__ import annotations

import io
import sys
import time

from confluent_kafka import Consumer, TopicPartition
from fastavro import parse_schema, schemaless_reader

from schemas.history import FILE, load

BATCH_MAX = 500  # as replay has them: its fastest


def main(broker: str, topic: str, events: int) -> None:
    readers = {b"\0" + entry.id.to_bytes(4): parse_schema(entry.schema) for entry in load(FILE)}
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "decoding", "auto.offset.reset": "earliest"})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    seen, began = 0, 0.0
    while seen < events:
        batch = consumer.consume(BATCH_MAX, timeout=0.2)
        if batch and not began:
            began = time.perf_counter()
            events -= len(batch)
            continue
        for message in batch:
            value = message.value() or b""
            stream = io.BytesIO(value)
            stream.seek(5)
            schemaless_reader(stream, readers[value[:5]], None)
        seen += len(batch)
    print(seen / (time.perf_counter() - began), flush=True)
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
