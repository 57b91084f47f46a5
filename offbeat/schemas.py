"""The JSON Schemas that are published in ``docs/``."""

from __future__ import annotations

from typing import Any

from pipeline.alerts import Alert
from pipeline.config import Config
from pipeline.notifications import Notification

_DIALECT = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def config_schema() -> dict[str, Any]:
    """Of ``offbeat.yaml``."""
    return _DIALECT | Config.model_json_schema()


def alert_schema() -> dict[str, Any]:
    """Of the value of a record on the alerts topic."""
    return _DIALECT | Alert.model_json_schema(mode="serialization")


def notification_schema() -> dict[str, Any]:
    """Of the value of a record on the notifications topic."""
    return _DIALECT | Notification.model_json_schema(mode="serialization")
