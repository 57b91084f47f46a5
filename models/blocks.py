"""Training of any number of networks: in blocks of some, by threads that each train blocks of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np
import torch

from models.autoencoder import Autoencoder, helpers
from models.descent import one_thread
from models.fitting import Check, fit
from models.learners import networks_at_once
from models.lessons import Lesson
from models.spec import ModelSpec

_News: TypeAlias = tuple[int, Check] | Future[Autoencoder]
"""Of a block: its number and how far it is; or that it is done."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is.

    Attributes:
        fraction: of the work there is at most, 0 to 1.
        finished: networks that are done.
        networks: all of them, the fallback included.
        first: the first of those that were checked, which are numbered in the bundle's order.
        check: how they are doing.
    """

    fraction: float
    finished: int
    networks: int
    first: int
    check: Check

    @property
    def loss(self) -> float:
        """Mean over the networks that still learn, on the rows they learn from."""
        return float(np.nanmean(self.check.loss))

    @property
    def held_out_loss(self) -> float:
        """Mean over the networks that were checked, each in its best moment so far."""
        return float(self.check.best_loss.mean())


def fit_blocks(
    lessons: Sequence[Lesson],
    spec: ModelSpec,
    device: torch.device,
    threads: int,
    on_progress: Callable[[Progress], None],
) -> Autoencoder:
    """Train one network a lesson, in this order; networks do not know of each other.

    Threads with blocks of their own wait for nobody, as those would that share each product.

    Args:
        lessons: one a network.
        spec: their shape.
        device: where they are trained.
        threads: how many blocks at a time.
        on_progress: called by this thread after each check of each block; what it raises ends training.
    """
    at_once = networks_at_once(spec, device)
    blocks = [lessons[first : first + at_once] for first in range(0, len(lessons), at_once)]
    news: SimpleQueue[_News] = SimpleQueue()
    over = threading.Event()

    def work(number: int) -> Autoencoder:
        def report(check: Check) -> None:
            if over.is_set():
                raise _Over
            news.put((number, check))

        return fit(blocks[number], spec, report, device)

    with one_thread(), helpers(threads, "training") as workers:
        works = [workers.submit(work, number) for number in range(len(blocks))]
        try:
            for each in works:
                each.add_done_callback(news.put)
            _follow(news, [len(block) for block in blocks], on_progress)
        finally:
            over.set()
            for each in works:
                each.cancel()
    return Autoencoder.join([each.result() for each in works])


def _follow(
    news: SimpleQueue[_News], networks: Sequence[int], on_progress: Callable[[Progress], None]
) -> None:
    """Tell how far blocks of so many networks are, until each is done; raises what ends one of them."""
    of, first = np.array(networks), np.cumsum([0, *networks])
    share, finished = np.zeros(len(of)), np.zeros(len(of), np.int64)
    left = len(of)
    while left:
        new = news.get()
        if isinstance(new, Future):
            new.result()
            left -= 1
            continue
        number, check = new
        share[number], finished[number] = check.share, check.finished
        done = float(share @ of / of.sum())
        on_progress(Progress(done, int(finished.sum()), int(of.sum()), int(first[number]), check))


class _Over(Exception):  # noqa: N818 - not an error: nobody waits for this block any longer
    """Ends the training of a block."""
