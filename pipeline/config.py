"""``offbeat.yaml``: what a stream is, checked with the path and line of every mistake.

Everything here is frozen: a running worker never sees a setting change under it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from pipeline.conditions import Condition
from pipeline.errors import ConfigError

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
TRAINING_WINDOWS = 7
"""A series is trained on at least so many times its window: 224 rows with the default one."""
MAX_OPEN_CELLS = 64
"""A row of state holds its open cells, so their number is bounded."""


def seconds(value: object) -> object:
    """Turn ``90s``, ``1.5h`` or ``7d`` into seconds; numbers are seconds already."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise ValueError(
                f"{value!r} is no duration: write a number and ms, s, m, h or d, such as 90s or 6h"
            )
        return float(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool):
        raise ValueError("a duration is a number and ms, s, m, h or d, such as 90s or 6h")  # noqa: TRY004
    return value


Duration = Annotated[
    float,
    BeforeValidator(seconds, json_schema_input_type=str | float),
    Field(ge=0, le=10 * 365 * 86400.0, allow_inf_nan=False),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
_FIELD = r'[^."\\\x00-\x1f]+'
FieldPath = Annotated[str, Field(min_length=1, max_length=200, pattern=rf"^{_FIELD}(\.{_FIELD})*$")]
"""What JSON writes otherwise than it is, such as quotes, no name may hold."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are mistakes, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Time(Section):
    """Where an event's time stands."""

    field: FieldPath = Field("time", description="JSON path of the time; ignored for `record`")
    format: Literal["s", "ms", "ns", "iso", "record"] = Field(
        "s", description="epoch seconds, milliseconds or nanoseconds, ISO 8601, or the record's own timestamp"
    )


class Feature(Section):
    """One measured value of a series."""

    path: FieldPath | None = Field(
        None, description="JSON path (wide) or metric name (narrow); default: its name"
    )
    transform: Literal["none", "rate", "diff", "log"] = Field(
        "none",
        description="`rate` per second for counters, `diff` to the row before, `log` as sign(x) ln(1+|x|)",
    )
    unit: str = Field("", description="shown beside the value in alerts")


def _features(value: object) -> object:
    if isinstance(value, list):
        if len(set(map(str, value))) != len(value):
            raise ValueError("a feature is named twice")
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {name: {} if feature is None else feature for name, feature in value.items()}
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


# What may be written for them, as editors and other readers of the JSON Schema see it.
_Paths = Annotated[list[FieldPath], Field(min_length=1, max_length=8)]
_Names = Annotated[list[Name], Field(min_length=1, max_length=256)]


def _condition(text: str) -> str:
    try:
        Condition(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no condition (Common Expression Language): {error}") from error
    return text


class Events(Section):
    """How the bytes of a record become readings."""

    kind: Literal["wide", "narrow"] = Field(
        "wide",
        description="wide: one object holds all features; narrow: one metric a record, joined on the grid",
    )
    time: Time = Time()
    series: Annotated[
        tuple[FieldPath, ...],
        Field(min_length=1, max_length=8),
        BeforeValidator(_listed, json_schema_input_type=FieldPath | _Paths),
    ] = Field(("series",), description="the field or fields that name the series")
    labels: Annotated[
        tuple[FieldPath, ...],
        Field(max_length=16),
        BeforeValidator(_listed, json_schema_input_type=FieldPath | list[FieldPath]),
    ] = Field(
        (),
        description="fields copied to alerts, read from the first event of a series; 256 characters of each",
    )
    features: Annotated[
        dict[Name, Feature],
        Field(min_length=1, max_length=256),
        BeforeValidator(_features, json_schema_input_type=_Names | dict[Name, Feature | None]),
    ]
    metric: FieldPath = Field("metric", description="narrow: the field that names the metric")
    value: FieldPath = Field("value", description="narrow: the field that holds the value")
    every: Duration | None = Field(None, description="the grid; without it each record is a row of its own")
    combine: Literal["mean", "last", "min", "max", "sum"] = Field(
        "mean", description="how the readings of a cell become one"
    )
    late: Duration | None = Field(None, description="how long a cell waits for stragglers; default: one cell")
    missing: Literal["hold", "reject"] = Field(
        "hold", description="a null feature: keep its last value (bounded by `gap`), or refuse the record"
    )
    gap: Duration | None = Field(
        None, description="a longer hole starts a new window; default: 5 cells, without a grid no bound"
    )
    ahead: Duration = Field(60.0, description="an event further ahead of its record's timestamp is refused")
    silent_after: Duration | None = Field(
        None, description="a series quiet for longer raises a `silent` alert"
    )
    forget_after: Duration = Field(7 * 86400.0, description="a series idle for longer is dropped")
    max_series: int = Field(100_000, ge=1, le=10_000_000, description="bound on live series of one partition")
    max_bytes: int = Field(1 << 20, ge=64, le=16 << 20, description="a larger record is refused")
    when: Annotated[str, AfterValidator(_condition)] | None = Field(
        None,
        min_length=1,
        max_length=2_000,
        description="a condition over the event's own fields (CEL), such as `pump.on && load > 3`; an event "
        "outside it shows that its series is alive, and is neither judged nor learned from",
    )

    @model_validator(mode="after")
    def _fits(self) -> Events:
        if self.kind == "narrow" and self.every is None:
            raise ValueError("narrow events need `every`: the grid joins metrics to rows")
        if self.every is not None:
            if self.every < 0.001:
                raise ValueError("`every` is at least 1ms")
            if self.late_s / self.every > MAX_OPEN_CELLS - 2:
                raise ValueError(f"`late` spans more than {MAX_OPEN_CELLS - 2} cells of `every`")
        elif self.late:
            raise ValueError("`late` needs `every`: without a grid, time must rise strictly within a series")
        if self.gap_s is not None and self.gap_s < (self.every or 0.001):
            raise ValueError("`gap` is shorter than `every` or 1ms: no window would ever fill")
        if self.silent_after is not None and not 0.001 <= self.silent_after < self.forget_after:
            raise ValueError("`silent_after` must be at least 1ms and below `forget_after`")
        if self.forget_after <= self.late_s + (self.every or 0.0):
            raise ValueError("`forget_after` must be longer than `every` and `late` together")
        self._distinct_paths()
        return self

    def _distinct_paths(self) -> None:
        """A path names one thing: no value is also an object, no feature is also the time or the series."""
        measured = {feature.path or name for name, feature in self.features.items()}
        if self.kind == "narrow":
            if len(measured) != len(self.features):
                raise ValueError("two features read the same metric")
            if self.metric == self.value:
                raise ValueError(f"the path {self.metric!r} is read as the metric's name and as its value")
            measured = {self.metric, self.value}
        time = {self.time.field} if self.time.format != "record" else set()
        if both := time & set(self.series):
            raise ValueError(f"the path {min(both)!r} is read as the time and as the series")
        named = time | set(self.series)
        if both := measured & named:
            raise ValueError(f"the path {min(both)!r} is read as a feature and as the time or the series")
        paths = measured | named | set(self.labels)
        for path in paths:
            for other in paths:
                if other.startswith(path + "."):
                    raise ValueError(f"the path {path!r} is read as a value, and {other!r} reaches into it")

    @property
    def late_s(self) -> float:
        """The lateness in seconds: as given, else one cell, else none."""
        return self.late if self.late is not None else (self.every or 0.0)

    @property
    def gap_s(self) -> float | None:
        """The gap in seconds: as given, else five cells, else no bound."""
        return self.gap if self.gap is not None else (5 * self.every if self.every is not None else None)


Scope = Literal["series", "cohort", "global"]


class Model(Section):
    """The autoencoder of a stream."""

    kind: Literal["undercomplete", "denoising", "sparse", "contractive", "variational", "pca"] = Field(
        "undercomplete", description="what keeps the autoencoder from copying its input"
    )
    window: int = Field(
        32,
        ge=2,
        le=512,
        description="rows in a window; of more than 4 features by default 128 values, at least 4 rows",
    )
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] | None = Field(
        None, description="widths between input and code; the decoder mirrors them; default: from the input"
    )
    code: int | None = Field(None, ge=1, le=1024, description="width of the middle; default: from the input")
    scope: Scope = Field(
        "series",
        description="who shares a network: no series up to `max_models` and cohorts beyond, cohorts, or all",
    )
    max_models: int = Field(
        1_000, ge=0, le=100_000, description="scope series: so many get a network of their own at most"
    )


class _Rolling(Section):
    """What rolling lines have in common."""

    memory: Duration = Field(6 * 3600.0, description="half-life; never shorter than 1,000 rows")
    adapt_after: Duration = Field(
        6 * 3600.0, description="an anomaly that lasts longer begins to count as normal"
    )


class Ewma(_Rolling):
    """Mean plus k standard deviations of the reconstruction error, both rolling."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["policy"]}, {"required": ["k"]}]})

    policy: Literal["ewma"] = "ewma"
    k: float = Field(5.0, gt=0, le=100, description="standard deviations above the mean")


class Quantile(_Rolling):
    """A multiple of a rolling quantile of the reconstruction error, whatever its distribution."""

    policy: Literal["quantile"]
    q: float = Field(0.99, ge=0.5, le=0.9999, description="the share of rows at or below the quantile")
    margin: float = Field(1.25, ge=1, le=100, description="times the quantile is the line")


class Static(Section):
    """A fixed line."""

    policy: Literal["static"]
    value: float = Field(gt=0, allow_inf_nan=False, description="the reconstruction error that is the line")


class Joint(_Rolling):
    """The autoencoder's error joined with its companions: the level, the memory of shapes, the rarity."""

    policy: Literal["joint"] = "joint"
    adapt_after: Duration = Field(
        0.0,
        description="an anomaly that lasts longer begins to count as normal; by default every row teaches "
        "(docs/quality.md)",
    )
    line: float | None = Field(
        None,
        gt=0,
        le=50,
        description="the joined score that is the line, in which a channel alone at its usual line makes 1; "
        "default: 0.444, or 1.55 where rarity does not weigh it; of several features 1.55 times the fifth "
        "root of their number, and more where the model was calibrated on few rows",
    )
    level: bool = Field(True, description="how far each value is from its own rolling mean")
    shapes: Literal["auto"] | bool = Field(
        "auto",
        description="how far the newest rows are from shapes seen before (about 2.5 KB a series); `auto`: "
        "streams of one feature, up to 100,000 series a partition",
    )
    rarity: bool = Field(True, description="streams of one feature alone: how seldom such a level was seen")


_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Direction = Literal["both", "above", "below"]


class AlertRules(Section):
    """When an episode fires and when it ends."""

    for_rows: int = Field(1, ge=1, le=10_000, alias="for", description="rows above the line before it fires")
    min_deviation: dict[Name, _Amount] | _Amount = Field(
        0.0,
        description="in a feature's own units, for all or by name: where the value that has most to do with "
        "a high error is no further from what was expected, the row counts as normal",
    )
    direction: dict[Name, Direction] | Direction = Field(
        "both", description="for all features or by name: only values `above` or `below` what was expected"
    )
    recovery: int = Field(32, ge=1, le=10_000, description="rows in a row below the line before it resolves")
    recovery_line: float = Field(1.0, gt=0, le=1, description="the score that these rows stay below")
    recovery_for: Duration = Field(0.0, description="how long these rows last at least")
    refractory: Duration = Field(0.0, description="no new alert of a series for so long after one resolved")
    critical: float = Field(2.0, ge=1, description="an alert whose score reaches this is critical")
    raise_by: float = Field(
        0.02, ge=0, le=1, description="each alert that was called a false alarm raises the line by this share"
    )
    raise_most: float = Field(0.2, ge=0, le=10, description="and all of them together by no more than this")


Device = Literal["auto", "cpu", "cuda"]


class Training(Section):
    """What the models learn from."""

    history: Duration = Field(
        14 * 86_400.0, gt=0, description="how far back from the newest record, where no beginning is given"
    )
    rows: int = Field(
        10_000,
        ge=64,
        le=10_000_000,
        description="at most so many rows of a series: the newest fifth of them, and slices of those before",
    )
    steps: int = Field(1_200, ge=1, le=1_000_000, description="optimiser steps at most")
    seed: int = Field(0, ge=0)
    every: Duration = Field(
        86_400.0, description="trained anew so long after the last decision on its model; 0: when asked"
    )
    drift_every: Duration = Field(
        900.0, description="a retrainer looks so often whether the newest rows have drifted; 0: never"
    )
    replay: Duration = Field(
        7 * 86_400.0, gt=0, description="how far back from the newest record the gate replays"
    )
    shadow: Duration = Field(
        0.0, description="so long in event time a new model judges the live stream in silence before the gate"
    )
    read_rate: int = Field(
        50_000, ge=1, le=100_000_000, description="records a second that a retrainer reads at most"
    )
    device: Device = Field("auto", description="`cuda`: a GPU; `auto`: one where there is one, else the CPU")
    threads: int = Field(1, ge=1, le=256, description="CPU threads that train, each some of the networks")


class Stream(Section):
    """One stream: an input topic and what is done with it."""

    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="where a worker begins that finds no position of its group"
    )
    events: Events
    model: Model = Model()
    threshold: Annotated[Ewma | Quantile | Static | Joint, Field(discriminator="policy")] = Joint()
    alerts: AlertRules = AlertRules()
    training: Training = Training()

    @model_validator(mode="before")
    @classmethod
    def _default_policy(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        threshold = value.get("threshold") if isinstance(value, dict) else None
        if isinstance(threshold, dict) and "policy" not in threshold:
            return {**value, "threshold": {"policy": "ewma" if "k" in threshold else "joint", **threshold}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _default_window(cls, value: Any) -> Any:  # noqa: ANN401 - whatever YAML holds
        """Long windows of many features make wide networks, in whose mean one bad row is lost."""
        if not isinstance(value, dict) or not isinstance(value.get("events"), dict):
            return value
        features, model = value["events"].get("features"), value.get("model") or {}
        if not isinstance(features, list | dict) or not isinstance(model, dict) or "window" in model:
            return value
        rows = max(4, min(32, 128 // max(len(features), 1)))
        return {**value, "model": {"window": rows, **model}}

    @model_validator(mode="after")
    def _names_features(self) -> Stream:
        for name, given in (
            ("min_deviation", self.alerts.min_deviation),
            ("direction", self.alerts.direction),
        ):
            unknown = given.keys() - self.events.features.keys() if isinstance(given, dict) else set()
            if unknown:
                raise ValueError(f"`alerts.{name}` names {min(unknown)!r}, which is no feature of the stream")
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features in their order."""
        return tuple(self.events.features)

    @property
    def transforms(self) -> str:
        """How rows are made from events, in words; bundles of another making do not fit."""
        events = self.events
        changed = [
            f"{name}: {feature.transform}"
            for name, feature in events.features.items()
            if feature.transform != "none"
        ]
        grid = "each event a row" if events.every is None else f"{events.combine} of every {events.every:g} s"
        return ", ".join([grid, *changed])

    @property
    def rows_sha(self) -> str:
        """A digest of all that a row is made of; series begin anew when it changes.

        The other settings of ``events`` are limits, which may change while windows are full.
        """
        limits = ("missing", "gap", "ahead", "silent_after", "forget_after", "max_series", "max_bytes")
        units = {"features": {"__all__": {"unit"}}}
        events = self.events.model_dump_json(exclude={**dict.fromkeys(limits, True), **units})
        text = f"{self.events.late_s} {self.model.window} {events}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Notify(Section):
    """Who is told what, when; on wall clock."""

    wait: Duration = Field(10.0, description="an incident is told so long after its first alert, in one")
    within: Duration = Field(60.0, description="alerts that open so soon after its last one join an incident")
    repeat: Duration = Field(
        4 * 3600.0,
        ge=60,
        description="an incident that is open and not acknowledged is told again after so long",
    )


class Config(Section):
    """The whole of ``offbeat.yaml``."""

    namespace: Name = Field(
        "offbeat", description="prefix of topics, groups, transactional ids and Redis keys"
    )
    bus: str = Field(
        "sqlite:///offbeat-data/offbeat.db", description="kafka://host:9092 or sqlite:///file.db"
    )
    state: str = Field(
        "embedded:///offbeat-data/state", description="redis://host:6379/0 or embedded:///folder"
    )
    registry: str = Field("offbeat-data/models", description="folder or fsspec URL of trained bundles")
    snapshots: str = Field(
        "offbeat-data/snapshots",
        description="where copies of the state are kept: a folder, or a URL such as s3://bucket/folder",
    )
    notify: Notify = Notify()
    streams: dict[Name, Stream] = Field(min_length=1)

    def stream(self, name: str) -> Stream:
        """The stream of that name.

        Raises:
            ConfigError: there is none; the message lists those there are.
        """
        if name not in self.streams:
            raise ConfigError(
                f"there is no stream {name!r}; the configuration has: {', '.join(self.streams)}"
            )
        return self.streams[name]

    @property
    def alerts_topic(self) -> str:
        """Where alerts are published."""
        return f"{self.namespace}.alerts"

    @property
    def notifications_topic(self) -> str:
        """What people are told."""
        return f"{self.namespace}.notifications"

    @property
    def control_topic(self) -> str:
        """What people and programs decide for the workers."""
        return f"{self.namespace}.control"

    def journal_topic(self, stream: str) -> str:
        """What was in force for which records of a stream, and what its alerts did."""
        return f"{self.namespace}.{stream}.journal"

    @property
    def dead_letters_topic(self) -> str:
        """Where records that could not be read are kept."""
        return f"{self.namespace}.dead-letters"

    def group(self, stream: str) -> str:
        """The consumer group of a stream's workers."""
        return f"{self.namespace}.{stream}.detect"

    @property
    def notifier_group(self) -> str:
        """The consumer group of the notifiers, of which one works at a time."""
        return f"{self.namespace}.notify"

    def transactional_id(self, stream: str, slot: int) -> str:
        """The transactional id of the worker in ``slot``; no two live workers share one."""
        return f"{self.namespace}.{stream}.{slot}"


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: it is missing, is not YAML, or holds mistakes; the message lists every one of them
            with its path and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; `offbeat config example > {path}` writes one to begin with"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a readable UTF-8 file") from error
    return parse(text, str(path))


def parse(text: str, origin: str = "offbeat.yaml") -> Config:
    """Check configuration text; ``origin`` stands in the messages. Raises as :func:`load`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{origin}:{line}: this is not YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: this is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}:1: expected settings such as `streams:`, found {type(value).__name__}")
    mistakes = [f"{origin}:{line}: {key}: set twice" for line, key in _set_twice(root)]
    try:
        config = Config.model_validate(value)
    except ValidationError as error:
        mistakes += [
            f"{origin}:{_line(root, mistake['loc'])}: {_dotted(mistake['loc'])}: {_said(mistake)}"
            for mistake in error.errors()
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def _set_twice(root: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Line and name of each key that a mapping holds already; YAML would let the last one win."""
    left, seen = [root], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias of what was looked at
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set()
            for key, child in node.value:
                if key.value in keys:
                    yield key.start_mark.line + 1, key.value
                keys.add(key.value)
                left.append(child)


def _dotted(location: tuple[int | str, ...]) -> str:
    return (
        ".".join(
            str(part) for part in location if part not in {"ewma", "quantile", "static", "joint", "[key]"}
        )
        or "top level"
    )


def _said(mistake: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if mistake["type"] == "extra_forbidden":
        return "no such setting; `offbeat config schema` lists them"
    if mistake["type"] == "missing":
        return "this setting is required"
    found = f" (found {mistake['input']!r})" if not isinstance(mistake["input"], dict | list) else ""
    return str(mistake["msg"]).removeprefix("Value error, ") + found


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                if key.value == str(part):
                    node, line = child, key.start_mark.line + 1
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
