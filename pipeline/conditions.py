"""Conditions over the fields of one event, in the Common Expression Language (cel.dev)."""

from __future__ import annotations

from typing import Any

import msgspec

_EVENT = msgspec.json.Decoder(dict[str, Any])


class Condition:
    """A compiled condition; a pure function of an event, without access to anything else.

    Raises:
        ValueError: the text is none; the message says where it goes wrong.
    """

    def __init__(self, text: str) -> None:
        import cel  # noqa: PLC0415 - it brings a terminal toolkit with it: only streams with a condition pay

        self._program = cel.compile(text)

    def holds(self, value: bytes) -> bool:
        """Whether it holds for an event, which is a JSON object.

        Raises:
            ValueError: it has no answer, because a field is missing or of another type.
        """
        try:
            answer = self._program.execute(_EVENT.decode(value))
        except Exception as error:  # whatever a field's type makes of an expression
            raise ValueError(str(error).partition(". ")[0]) from error
        if not isinstance(answer, bool):
            raise ValueError(f"it comes to {answer!r}, neither true nor false")  # noqa: TRY004 - a value is wrong
        return answer
