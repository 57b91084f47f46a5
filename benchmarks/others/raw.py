"""confluent-kafka alone: reads a topic as fast as it can and does nothing with the records.

``raw.py SERVERS TOPIC WARM RECORDS`` prints records, seconds and CPU seconds behind the first ``WARM``.
The settings are those of several that were fastest: librdkafka waits a second before it fetches again
when its queue is full, which is most of the difference; larger fetches are some 5 % more.
"""

import json
import sys
import time
import uuid

from confluent_kafka import Consumer, TopicPartition

TUNED = {
    "fetch.queue.backoff.ms": 5,
    "max.partition.fetch.bytes": 8 << 20,
    "fetch.max.bytes": 64 << 20,
}
BATCH = 10_000


def main() -> None:
    """Read, and print what it took."""
    servers, topic, warm, records = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"{topic}-raw-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            **TUNED,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    done = 0
    while done < warm:
        done += len(consumer.consume(BATCH, 1))
    began, wall_s, cpu_s = done, time.perf_counter(), time.process_time()
    while done < records:
        done += len(consumer.consume(BATCH, 1))
    taken = {
        "records": done - began,
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
    }
    consumer.close()
    print(json.dumps(taken))


main()
