"""The retrainer: keeps a stream's model fresh, without letting it get worse.

Several may run, of which one works on a stream at a time: it holds a lease, which its progress renews, and
writes its decisions under the lease's token, so that those of one that lost it change nothing. What it knows
stands in the control topic and the registry: it can end and begin anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from consumers.attempt import LEASE_S, AskedToStopError, Attempt, LeaseLostError, Outcome, Parts
from consumers.drifting import Drifting
from consumers.due import NEVER, Growth, due, may_follow_drift
from models import rows_needed
from models.learning import Step
from models.spec import model_spec
from pipeline.config import Stream
from pipeline.control import ControlLog, ControlView
from pipeline.drift import DRIFTED
from pipeline.errors import BusError, OffbeatError, StoreDown, TooFewRows, Unreadable
from pipeline.figures import lasting
from pipeline.metrics import METRICS as WORKERS
from pipeline.metrics import gauge
from pipeline.records import TopicPartition

LOOK_S: Final = 5.0
"""Between two looks at whether training is due, and at a server that is down."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a retrainer is doing.

    Attributes:
        doing: ``starting``, ``waiting``, ``waiting for rows``, ``standing by``, ``reading``, ``training``,
            ``shadowing``, ``judging``, ``waiting for a server``, ``stopped at damage`` or ``stopped``.
        message: the same with figures.
        fraction: of what it is doing, 0 to 1; None where it is not known.
        bundle_id: the champion.
        model_age_s: since that one was first promoted.
        next_at: when the next training is due by itself; None where none is.
        drift: share of the newest errors that are far off, see :mod:`pipeline.drift`; None where nothing is
            known.
        promoted, refused: challengers of this retrainer since its start.
    """

    doing: str
    message: str = ""
    fraction: float | None = None
    bundle_id: str | None = None
    model_age_s: float | None = None
    next_at: datetime | None = None
    drift: float | None = None
    promoted: int = 0
    refused: int = 0


METRICS = {
    "offbeat_training_doing": "1 for what the retrainer is doing now, by the name in its status line",
    "offbeat_training_done": "Share of what it is doing that is done, where that is known",
    "offbeat_training_promoted": "Challengers that this retrainer promoted since its start",
    "offbeat_training_refused": "Challengers that the gate refused since its start",
    "offbeat_training_next_timestamp_seconds": "When the next training is due by itself, where one is",
    "offbeat_model_drift": WORKERS["offbeat_model_drift"],
    "offbeat_model_age_seconds": "Time since the model in use was first promoted, where there is one",
}


class StatusCollector(Collector):
    """Reads a retrainer's status whenever it is scraped."""

    def __init__(self, stream: str, status: Callable[[], Status]) -> None:
        self._stream, self._status = stream, status

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment; what is not known has no sample."""
        status = self._status()
        next_s = None if status.next_at is None else status.next_at.timestamp()
        yield gauge("offbeat_training_doing", METRICS, self._stream, {status.doing: 1}, label="doing")
        plain = {
            "offbeat_training_done": status.fraction,
            "offbeat_training_promoted": status.promoted,
            "offbeat_training_refused": status.refused,
            "offbeat_training_next_timestamp_seconds": next_s,
            "offbeat_model_drift": status.drift,
            "offbeat_model_age_seconds": status.model_age_s,
        }
        for name, value in plain.items():
            yield gauge(name, METRICS, self._stream, {} if value is None else {"": value})


def run(parts: Parts, *, on_status: Callable[[Status], None] = lambda _: None) -> Status:
    """Train whenever it is due until asked to stop; the caller closes what the parts are of.

    Raises:
        OffbeatError: something that trying again cannot mend, such as a missing topic.
    """
    retrainer = Retrainer(parts, on_status)
    while not parts.should_stop():
        retrainer.turn()
    return retrainer.status


class Retrainer:
    """A stream's retrainer. One thread uses it.

    Args:
        parts: what it is made of.
        on_status: told at each step.

    Attributes:
        status: what it is doing now.
    """

    def __init__(self, parts: Parts, on_status: Callable[[Status], None] = lambda _: None) -> None:
        self._parts, self._on_status = parts, on_status
        self._log = ControlLog(parts.reader, parts.config.control_topic, parts.notice)
        self._growth: Growth | None = None
        self._drifting = Drifting(parts, parts.stop_if_asked)
        self._phase, self._phase_at, self._phase_from = "", 0.0, 0.0
        self._trouble = ""
        self.status = Status("starting")

    def turn(self) -> None:
        """One look at what is due, and all the work that it asks for; faults outside are waited out.

        Raises:
            NotFound: the stream's topic does not exist.
        """
        try:
            self._look()
        except AskedToStopError:
            return
        except (BusError, StoreDown) as error:
            self._wait_out(error)
        else:
            self._trouble = ""

    def once(self, why: str, *, force: str | None = None) -> Outcome:
        """Train now.

        Args:
            why: for the audit log.
            force: promote whatever the gate says, for this reason.

        Raises:
            TooFewRows: there is not enough history.
            OffbeatError: somebody else works on the stream, a server is down, or the work was ended.
        """
        name = self._parts.stream
        try:
            self._log.refresh()
            outcome = self._attempt(why, force=force)
        except LeaseLostError as error:
            raise OffbeatError(f"stream {name!r}: {error}; nothing was changed by this one") from None
        except AskedToStopError:
            raise OffbeatError(f"stream {name!r}: the training was ended; nothing was changed") from None
        if outcome is None:
            raise OffbeatError(f"stream {name!r}: another program trains it now; try again when it is done")
        return outcome

    def _look(self) -> None:
        parts, view = self._parts, self._log.refresh()
        settings = self._settings(view)
        found, now = due(view, parts.stream, settings.training.every), parts.now()
        if found.at_s > now.timestamp():
            why = self._has_doubled(view, settings) or self._has_drifted(view, settings)
            if why:
                self._train(why)
            else:
                self._rest(view, settings, found.at_s, now)
        elif parts.stream in view.champions or self._rows_are_enough(settings):
            self._train(found.why)

    def _settings(self, view: ControlView) -> Stream:
        """Those in force, which workers judge by; the configuration's where there are none yet."""
        name = self._parts.stream
        sha = view.policies.get(name)
        return self._parts.config.stream(name) if sha is None else view.settings[sha]

    def _rest(self, view: ControlView, settings: Stream, at_s: float, now: datetime) -> None:
        grown = ""
        if self._growth is not None and self._parts.stream not in view.champions:
            records = self._records(settings)
            grown = f", or at {self._growth.wanted:,} records, of which there are {records:,}"
        if at_s == NEVER:
            self._say("waiting", f"{self._drift_told()}trains when it is asked to{grown}")
        else:
            at = datetime.fromtimestamp(at_s, UTC)
            left = lasting(at_s - now.timestamp())
            told = f"{self._drift_told()}next training {at:%Y-%m-%d %H:%M} UTC, in {left}{grown}"
            self._say("waiting", told, next_at=at)
        self._parts.wait(LOOK_S)

    def _drift_told(self) -> str:
        share = self._drifting.share
        return "" if share is None else f"drift {share:.2f}, "

    def _rows_are_enough(self, settings: Stream) -> bool:
        records = self._records(settings)
        self._growth = self._growth or Growth(rows_needed(model_spec(settings)))
        if self._growth.enough(records):
            return True
        self._say("waiting for rows", self._growth.told(records, self._parts.clock()))
        self._parts.wait(LOOK_S)
        return False

    def _has_doubled(self, view: ControlView, settings: Stream) -> str:
        """Why to train where a stream without a model has twice the records that were too few for one."""
        if self._parts.stream in view.champions:
            return ""
        self._growth = self._growth or self._since_refused(view, settings)
        doubled = self._growth.enough(self._records(settings))
        return "there are twice as many records as when the first model was refused" if doubled else ""

    def _since_refused(self, view: ControlView, settings: Stream) -> Growth:
        """How far the topic is since the last refusal, which another retrainer may have written."""
        reader, at_s = self._parts.reader, view.refusals[self._parts.stream][-1].at.timestamp()
        growth = Growth(rows_needed(model_spec(settings)))
        growth.refused(
            sum(
                reader.offset_at(TopicPartition(settings.topic, number), round(1_000 * at_s))
                - bounds.first_offset
                for number, bounds in reader.bounds(settings.topic).items()
            )
        )
        return growth

    def _has_drifted(self, view: ControlView, settings: Stream) -> str:
        """Why to train where the newest rows are not those that the champion was calibrated on."""
        self._drifting.look(view, settings)
        share, now_s = self._drifting.share, self._parts.now().timestamp()
        if share is None or share < DRIFTED:
            return ""
        every_s = settings.training.every
        allowed = may_follow_drift(view, self._parts.stream, every_s, now_s)
        return f"the stream has drifted: {share:.0%} of its newest errors are far off" if allowed else ""

    def _records(self, settings: Stream) -> int:
        bounds = self._parts.reader.bounds(settings.topic).values()
        return sum(each.end_offset - each.first_offset for each in bounds)

    def _train(self, why: str) -> None:
        """An attempt and what there is to say of it; only outside faults are raised."""
        parts = self._parts
        try:
            outcome = self._attempt(why)
        except LeaseLostError as error:
            parts.notice(f"{error}; what was made is dropped")
            return
        except (BusError, StoreDown):
            raise
        except TooFewRows as error:
            if self._growth is not None:
                records = self._records(self._settings(self._log.view))
                self._growth.short(records, rows=error.rows, have=error.have, need=error.need)
            parts.notice(str(error))
            return
        except OffbeatError as error:
            parts.notice(f"the stream cannot be trained: {error}")
            parts.wait(LOOK_S)
            return
        if outcome is None:
            self._say("standing by", "another retrainer trains the stream")
            parts.wait(LOOK_S)
            return
        if self._growth is not None:
            self._growth.refused(self._records(self._settings(self._log.view)))
        for each in filter(None, (outcome.refused, outcome)):
            done = "is in use" if each.promoted else "was not promoted"
            parts.notice(f"bundle {each.bundle_id[:12]} {done}: {each.why}")

    def _attempt(self, why: str, *, force: str | None = None) -> Outcome | None:
        """One training; None where somebody else holds the lease, or something was decided meanwhile."""
        parts, looked = self._parts, self._log.view.next_offset
        lease = parts.leases.take(parts.work, LEASE_S)
        if lease is None:
            return None
        try:
            if self._log.refresh().next_offset != looked:
                return None
            settings = self._settings(self._log.view)
            outcome = Attempt(parts, self._log, lease, self._step).run(why, settings, force=force)
        finally:
            with suppress(StoreDown):
                parts.leases.give(lease)
        promoted, refused = (
            self.status.promoted + outcome.promoted,
            self.status.refused + (not outcome.promoted or outcome.refused is not None),
        )
        self.status = replace(self.status, promoted=promoted, refused=refused)
        return outcome

    def _step(self, step: Step) -> None:
        now_s = self._parts.clock()
        if step.phase != self._phase:
            self._phase, self._phase_at, self._phase_from = step.phase, now_s, step.fraction or 0.0
        left, done = "", (step.fraction or 0.0) - self._phase_from
        if step.fraction and done > 0 and step.fraction < 1:
            left = f", about {lasting((now_s - self._phase_at) / done * (1 - step.fraction))} left"
        self._say(step.phase, f"{step.detail}{left}", fraction=step.fraction)

    def _wait_out(self, error: OffbeatError) -> None:
        """Pause. A trouble is told when it begins."""
        if not self._trouble:
            self._parts.notice(str(error))
        self._trouble = str(error)
        doing = "stopped at damage" if isinstance(error, Unreadable) else "waiting for a server"
        self._say(doing, self._trouble)
        self._parts.wait(LOOK_S)

    def _say(
        self, doing: str, message: str, *, fraction: float | None = None, next_at: datetime | None = None
    ) -> None:
        view, name = self._log.view, self._parts.stream
        champion = view.champions.get(name)
        first = next((each for each in view.promotions.get(name, ()) if each.bundle == champion), None)
        self.status = replace(
            self.status,
            doing=doing,
            message=message,
            fraction=fraction,
            bundle_id=champion,
            model_age_s=None if first is None else (self._parts.now() - first.at).total_seconds(),
            next_at=next_at,
            drift=self._drifting.share,
        )
        self._on_status(self.status)
