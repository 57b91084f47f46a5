"""The same topic through quixstreams: ``quixstreams_zscore.py SERVERS TOPIC WARM RECORDS``.

The moments stand in a dictionary: its own state store, which survives a crash, halves the rate.
"""

import sys
import uuid
from collections import defaultdict

from quixstreams import Application
from zscore import Meter, Series

servers, topic, warm, records = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
meter = Meter(warm, records)
every: defaultdict[str, Series] = defaultdict(Series)
application = Application(
    broker_address=servers,
    consumer_group=f"{topic}-quixstreams-{uuid.uuid4()}",
    auto_offset_reset="earliest",
    consumer_extra_config={"fetch.queue.backoff.ms": 5},
    loglevel="WARNING",
)


def above(event: dict[str, object]) -> bool:
    """Whether the row's score is above the line."""
    found = meter.count(every[event["series"]].score(event["temperature"]))
    if meter.taken:
        application.stop()
    return found


frame = application.dataframe(application.topic(topic, value_deserializer="json"))
frame = frame.filter(above)
frame.update(lambda event: print("#", event["series"]))
application.run()
meter.tell()
