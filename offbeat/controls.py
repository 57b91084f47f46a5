"""Deciding things: records for the control topic, written under a person's or a program's name."""

from __future__ import annotations

import difflib
import getpass
import secrets
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.control import (
    Champion,
    ControlLog,
    ControlView,
    Expired,
    Feedback,
    Pinned,
    Policy,
    Record,
    Silenced,
    Standing,
    Verdict,
    policy_sha,
    send,
    settings_of,
)
from pipeline.errors import NotFound, OffbeatError
from pipeline.records import TopicSpec

if TYPE_CHECKING:
    from pipeline.alerts import Alert
    from pipeline.config import Config, Stream
    from pipeline.ports import Broker
    from pipeline.silences import Silence


def who(command: str) -> str:
    """Who decides: the user, the machine and the command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        user = "unknown"
    return f"{user}@{socket.gethostname()} ({command})"


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def standing(config: Config, broker: Broker) -> ControlView:
    """What stands now, for whoever only reads; nothing where there is no control topic yet.

    Raises:
        BusDown: the bus cannot be reached.
    """
    try:
        return ControlLog(broker.reader(), config.control_topic).refresh()
    except NotFound:
        return ControlView()


class Control:
    """The control topic of an installation, to read and to decide; it is made where it is missing.

    Args:
        who: decides, see :func:`who`.
        notice: told of records that change nothing.
        now: the wall clock, in UTC.

    Raises:
        BusDown: the bus cannot be reached.
    """

    def __init__(
        self,
        config: Config,
        broker: Broker,
        who: str,
        notice: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        broker.admin().create([TopicSpec(config.control_topic, 1, broker_time=True)])
        self._config, self._who, self._now = config, who, now
        self._producer = broker.producer()
        self._log = ControlLog(broker.reader(), config.control_topic, notice)

    def view(self) -> ControlView:
        """What stands now."""
        return self._log.refresh()

    def promote(
        self, stream: str, bundle_id: str, why: str, there: Callable[[], bool] = lambda: True
    ) -> str | None:
        """Make a bundle the champion; returns its predecessor's id.

        ``there``, whether the registry still has it, is asked once it is the champion. Where it says no, the
        predecessor is the champion again.

        Raises:
            OffbeatError: somebody else promoted another one at the same moment, or removed this one.
        """
        before = self.view().champions.get(stream)
        if before == bundle_id:
            return before
        self._publish(Champion(**self._said(stream, why), bundle=bundle_id, predecessor=before))
        if (now := self.view().champions.get(stream)) != bundle_id:
            raise OffbeatError(
                f"stream {stream!r}: another bundle, {(now or 'none')[:12]}, was promoted at the same "
                "moment; look at it and try again"
            )
        if not there():
            gone = f"bundle {bundle_id[:12]} was removed at the same moment"
            if before is not None:
                self._publish(Champion(**self._said(stream, gone), bundle=before, predecessor=bundle_id))
            champion = self.view().champions[stream]
            raise OffbeatError(
                f"stream {stream!r}: {gone}, and {champion[:12]} is the champion; `offbeat models list "
                f"{stream}` shows what is there: promote one of them, or `offbeat models import` it anew"
            )
        return before

    def pin(
        self, stream: str, bundle_id: str | None, why: str, there: Callable[[], bool] = lambda: True
    ) -> str | None:
        """Hold challengers against a bundle from now on, or against none; returns the one before.

        ``there`` is asked as by :meth:`promote`.

        Raises:
            OffbeatError: somebody removed the bundle at the same moment; the one before is pinned again.
        """
        before = self.view().pinned.get(stream)
        if before == bundle_id:
            return before
        self._publish(Pinned(**self._said(stream, why), bundle=bundle_id))
        if not there():
            gone = f"bundle {(bundle_id or '')[:12]} was removed at the same moment"
            self._publish(Pinned(**self._said(stream, gone), bundle=before))
            raise OffbeatError(
                f"stream {stream!r}: {gone}; `offbeat models list {stream}` shows what is there to be pinned"
            )
        return before

    def apply(self, stream: str, why: str) -> str:
        """Make the configuration's section the policy of a stream; returns its hash.

        Raises:
            OffbeatError: somebody else applied another one at the same moment.
        """
        settings = settings_of(self._config.stream(stream))
        sha, before = policy_sha(settings), self.view().policies.get(stream)
        if before == sha:
            return sha
        self._publish(Policy(**self._said(stream, why), sha=sha, predecessor=before, settings=settings))
        if (now := self.view().policies.get(stream)) != sha:
            raise OffbeatError(
                f"stream {stream!r}: another policy, {(now or 'none')[:12]}, was applied at the same moment; "
                "look at it and try again"
            )
        return sha

    def silence(self, silence: Silence, why: str) -> Standing:
        """Let a silence hold from now on, under an id of its own.

        Raises:
            OffbeatError: another silence got this id at the same moment.
        """
        made = Silenced(**self._said(silence.matchers.stream, why), id=secrets.token_hex(6), silence=silence)
        self._publish(made)
        found = self.view().silences.get(made.id)
        if found is None or found.record != made:
            raise OffbeatError(
                f"the silence {made.id} did not take effect; see `offbeat silences list`, try again"
            )
        return found

    def expire(self, silence_id: str, why: str) -> Standing:
        """End a silence before its time; whoever else ends it at the same moment wanted the same.

        Raises:
            NotFound: there is no such silence.
            OffbeatError: it is over already.
        """
        found = self.view().silences.get(silence_id)
        if found is None:
            raise NotFound(f"there is no silence {silence_id!r}; `offbeat silences list` shows them")
        now = datetime.now(UTC)
        if found.over(now):
            raise OffbeatError(
                f"the silence {silence_id} is over already; `offbeat silences list --all` shows it"
            )
        self._publish(Expired(**self._said(found.record.stream, why), id=silence_id))
        return self.view().silences[silence_id]

    def feedback(self, alert: Alert, verdict: Verdict, why: str) -> tuple[Feedback, ControlView]:
        """Say something of an alert; returns what was said and what stands after it."""
        said = Feedback(**self._said(alert.stream, why), alert=alert.id, series=alert.series, verdict=verdict)
        self._publish(said)
        return said, self.view()

    def _said(self, stream: str, why: str) -> dict[str, Any]:
        """What every record says: about which stream, when, who and why."""
        return {"stream": stream, "at": self._now(), "who": self._who, "why": why}

    def _publish(self, record: Record) -> None:
        self._producer.send([send(record, self._config.control_topic)])
        self._producer.flush()


def difference(stream: str, before: Stream | None, settings: dict[str, Any]) -> str:
    """What would change, as a unified diff of YAML; the whole section where there was none before."""
    now = _yaml(settings)
    was = [] if before is None else _yaml(settings_of(before))
    names = f"{stream} in force" if was else "nothing in force", f"{stream} to be put in force"
    lines = difflib.unified_diff(was, now, *names, n=2)
    return "\n".join(line.rstrip("\n") for line in lines)


def _yaml(settings: dict[str, Any]) -> list[str]:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).splitlines()
