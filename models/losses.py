"""How the losses of networks fell while they were trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.blocks import Progress
from models.fitting import Check
from pipeline.ports import Float32s


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """How training went, by network in the bundle's order; the fallback is the last.

    Attributes:
        train, held_out: float32[C, M], at each of up to C checks; NaN once a network is done.
    """

    train: Float32s
    held_out: Float32s


class Curves:
    """The losses of networks as they come: of blocks of them, some at a time."""

    def __init__(self) -> None:
        self._blocks = dict[int, list[Check]]()

    def add(self, progress: Progress) -> None:
        """Take in what one check found."""
        self._blocks.setdefault(progress.first, []).append(progress.check)

    def losses(self) -> Losses:
        """All of it."""
        checks = max(len(block) for block in self._blocks.values())

        def joined(name: str) -> Float32s:
            """Blocks side by side, those with fewer checks ended with NaN."""
            blocks = [
                np.stack([getattr(each, name) for each in block]) for _, block in sorted(self._blocks.items())
            ]
            return np.concatenate(
                [
                    np.pad(each, [(0, checks - len(each)), (0, 0)], constant_values=np.float32(np.nan))
                    for each in blocks
                ],
                axis=1,
            )

        return Losses(joined("loss"), joined("held_out_loss"))
