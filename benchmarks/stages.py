"""The stages that are measured; each one does all that the stage before it does, and one thing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from consumers.replayer import Replayer
from models.history import topic_bounds
from offbeat.app import StreamModels, open_replay
from offbeat.benchmark.installation import bundle_id
from offbeat.benchmark.passes import Job, batches, consume, whole
from pipeline.detect import Detector
from pipeline.ports import Errors, Scorer, Windows
from pipeline.readings import Decoder
from pipeline.series import Layout, PartitionState
from pipeline.testing import FakeScorer

Stage = Callable[[Job], Iterator[int]]
"""Makes a pass, and yields after each poll how many records it has read."""


def decode(job: Job) -> Iterator[int]:
    """Consume, and decode the events to columns."""
    settings = job.config.stream(job.stream)
    decoder, state = Decoder(settings), PartitionState(Layout.of(settings))
    for batch, done in batches(job):
        decoder.decode(batch, state)
        yield done


def windows(job: Job) -> Iterator[int]:
    """And align rows, fill windows, and judge them: the detect step but for the reconstruction."""
    yield from _detect(job, _Unscored())


def detect(job: Job) -> Iterator[int]:
    """And reconstruct every window: the whole detect step."""
    settings = job.config.stream(job.stream)
    yield from _detect(
        job, StreamModels(job.config, job.stream).scorer(bundle_id(job.config, job.stream), settings)
    )


def replay(job: Job) -> Iterator[int]:
    """What a worker has read once, judged once more."""
    with open_replay(job.config, job.stream) as parts:
        topic = job.config.stream(job.stream).topic
        replays, _ = Replayer(parts).prepare(topic_bounds(parts.reader, topic, None, None))
        done = 0
        for each in replays:
            for read in each.run():
                done += read.records
                yield done


PASSES: list[tuple[str, str, Stage]] = [
    ("consume", "", consume),
    ("consume, decode", "", decode),
    ("consume, decode, windows", "", windows),
    ("consume, decode, windows, score", "shared", detect),
    ("consume, decode, windows, score", "stacked", detect),
    ("whole path", "shared", whole),
    ("whole path", "stacked", whole),
]


class _Unscored(FakeScorer):
    """Finds every window usual, at no cost."""

    def score(self, windows: Windows) -> Errors:
        zeros = np.zeros(len(windows))
        return Errors(zeros, zeros)


def _detect(job: Job, scorer: Scorer) -> Iterator[int]:
    detector = Detector(job.config.namespace, job.stream, job.config.stream(job.stream))
    state = detector.fresh("", 0)
    for batch, done in batches(job):
        detector.step(state, batch, scorer)
        yield done
