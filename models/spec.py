"""What to train: the kind and shape of network that a stream asks for, and whether a bundle still fits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from models.kinds import KINDS, Kind
from pipeline.config import Stream
from pipeline.errors import BundleError, ConfigError

MAX_WIDTH: Final = 65_536
"""Bound on window_rows x features, and on every layer's width."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to train: the kind, the shape of the network and of its input.

    The input is a window of ``window_rows`` rows of all features, flattened row by row. Where ``hidden``
    is None it is one layer of half the input's width up to 32, and of an eighth beyond 256; where ``code``
    is None it is the kind's share of the last hidden layer, mostly a quarter: 32-16-4-16-32 for one feature
    and 32 rows, 128-32-8-32-128 for four. A kind without hidden layers has the code it would have with them.

    Attributes:
        features: names, in the order of the columns.
        window_rows: rows in a window.
        kind: the kind of autoencoder, one of :data:`models.kinds.KINDS`.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        code: width of the code.
        seed: everything random follows from it.
        steps: optimiser steps at most.
        transforms: how features were made from readings; compared, never read.

    Raises:
        ConfigError: a value does not make sense.
    """

    features: tuple[str, ...]
    window_rows: int = 32
    kind: str = "undercomplete"
    hidden: tuple[int, ...] | None = None
    code: int | None = None
    seed: int = 0
    steps: int = 1_200
    transforms: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"model.kind is {self.kind!r}; the kinds are {', '.join(KINDS)}")
        if not self.features or self.window_rows < 2 or self.steps < 1 or self.seed < 0:
            raise ConfigError(
                f"a model needs features (found {len(self.features)}), windows of at least 2 rows "
                f"(window_rows is {self.window_rows}), steps (found {self.steps}) and a seed from 0 on "
                f"(found {self.seed})"
            )
        if self.hidden and not self.family.layered:
            raise ConfigError(
                f"model.hidden is {list(self.hidden)}, but {self.kind} goes from the input to the code in "
                "one linear step; leave hidden out or choose another kind"
            )
        widths = self.encoder_widths()
        if min(widths) < 1 or max(widths) > MAX_WIDTH:
            raise ConfigError(f"layers of {widths} units; each must have 1 to {MAX_WIDTH}")
        if self.family.narrow and widths[-1] >= widths[0]:
            raise ConfigError(
                f"model.code is {widths[-1]} for an input of {widths[0]} values; an autoencoder of kind "
                f"{self.kind} needs a narrower code, or it can copy its input"
            )

    @property
    def family(self) -> Kind:
        """What its kind is."""
        return KINDS[self.kind]

    @property
    def width(self) -> int:
        """Values in a window: the width of input and output."""
        return self.window_rows * len(self.features)

    def encoder_widths(self) -> tuple[int, ...]:
        """Widths from the input to the code."""
        hidden = self.hidden
        if hidden is None:
            hidden = (max(1, min(self.width // 2, 32), self.width // 8),)
        code = self.code
        if code is None:
            code = max(1, int((self.width, *hidden)[-1] * self.family.code_share))
        return (self.width, *hidden, code) if self.family.layered else (self.width, code)

    def widths(self) -> tuple[int, ...]:
        """Widths of all layers: the encoder's, then the same mirrored."""
        encoder = self.encoder_widths()
        return encoder + encoder[-2::-1]


def model_spec(stream: Stream) -> ModelSpec:
    """What a stream's settings ask of its model.

    Raises:
        ConfigError: the network's shape does not make sense.
    """
    model = stream.model
    return ModelSpec(
        features=stream.feature_names,
        window_rows=model.window,
        kind=model.kind,
        hidden=model.hidden,
        code=model.code,
        seed=stream.training.seed,
        steps=stream.training.steps,
        transforms=stream.transforms,
    )


def check_fits(spec: ModelSpec, bundle_id: str, name: str, stream: Stream) -> None:
    """Refuse a bundle that was trained for other rows than the stream has now.

    Raises:
        BundleError: names both and the remedy.
    """
    for what, has, wants in (
        ("features", ", ".join(spec.features), ", ".join(stream.feature_names)),
        ("windows of", f"{spec.window_rows} rows", f"{stream.model.window} rows"),
        ("rows made as", repr(spec.transforms), repr(stream.transforms)),
    ):
        if has != wants:
            raise BundleError(
                f"bundle {bundle_id[:12]} has {what} {has}; stream {name!r} is set to {wants}: train it "
                f"again (`offbeat train {name}`) or set the stream back"
            )
