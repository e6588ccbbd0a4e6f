"""
What operators may say: query strings and bodies, read strictly.

A misspelt filter that is ignored shows everything and hides the mistake, so whatever is not
understood is answered with what would be right. An empty parameter counts as absent.
"""

import re
from collections.abc import Collection
from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from starlette.types import Scope

from sentinel_proxy.admin.broadcast import EVENT_TYPES
from sentinel_proxy.errors import CallerError
from sentinel_proxy.wire.json import loads

_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_UNIX: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)
_ENUM = TypeVar("_ENUM", bound=StrEnum)


class Query:
    """
    The parameters of one request.

    Args:
        known: Which there are.

    Raises:
        CallerError: There is another one, or one twice. So do all methods, for values.
    """

    def __init__(self, scope: Scope, known: Collection[str]) -> None:
        self._values: dict[str, str] = {}
        for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
            if name not in known:
                raise _mistake(
                    name, f"there is no parameter {name[:50]!r}{_nearest(name, known)}", "unknown_parameter"
                )
            if name in self._values:
                raise _mistake(name, f"{name} is there twice")
            self._values[name] = value

    def text(self, name: str) -> str | None:
        """Return the value of *name*, None where it is absent or empty."""
        return self._values.get(name) or None

    def whole_number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a number between *least* and *most*."""
        text = self.text(name)
        if text is None:
            return default
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise _mistake(name, f"{name} must be a whole number from {least} to {most}")
        return int(text)

    def one_of(self, name: str, known: Collection[str]) -> str | None:
        """Return a value that is one of *known*."""
        text = self.text(name)
        if text is not None and text not in known:
            raise _mistake(name, f"{name} must be one of {', '.join(known)}{_nearest(text, known)}")
        return text

    def member(self, name: str, kind: type[_ENUM]) -> _ENUM | None:
        """Return a member of *kind*."""
        text = self.one_of(name, [member.value for member in kind])
        return None if text is None else kind(text)

    def event_id(self, name: str) -> str | None:
        """Return the id of an event or an incident: a ULID, in capitals."""
        text = self.text(name)
        if text is not None and not _ULID.fullmatch(text.upper()):
            raise _mistake(
                name, f"{name} must be an id as events and incidents have them, 26 letters and digits"
            )
        return None if text is None else text.upper()

    def event_types(self, name: str) -> frozenset[str]:
        """Return types of events, given with commas between them; none: all."""
        types = [part.strip() for part in (self.text(name) or "").split(",") if part.strip()]
        if unknown := next((type for type in types if type not in EVENT_TYPES), None):
            known = ", ".join(EVENT_TYPES)
            raise _mistake(
                name, f"there is no type {unknown[:50]!r}; there are {known}{_nearest(unknown, EVENT_TYPES)}"
            )
        return frozenset(types)

    def moment(self, name: str) -> float | None:
        """Return Unix seconds, given as such or as RFC 3339 has it."""
        text = self.text(name)
        if text is None:
            return None
        if _UNIX.fullmatch(text):
            return float(text)
        # An unencoded "+" of an offset arrives as a space.
        try:
            parsed = datetime.fromisoformat(text.replace(" ", "+") if text.count(" ") == 1 else text)
        except ValueError:
            parsed = None
        if parsed is None or parsed.tzinfo is None:
            raise _mistake(name, f"{name} must be a time such as 2026-03-01T10:00:00Z, or Unix seconds")
        return parsed.timestamp()


class Fields:
    """
    The fields of a JSON object that was sent.

    Raises:
        CallerError: It is no object, or has a field that is not *known*. So do all methods.
    """

    def __init__(self, body: bytes, known: Collection[str]) -> None:
        try:
            value = loads(body)
        except ValueError:
            raise CallerError("the body must be JSON", code="invalid_json") from None
        if not isinstance(value, dict):
            raise CallerError("the body must be a JSON object", code="invalid_type")
        if unknown := next((name for name in value if name not in known), None):
            raise _mistake(
                unknown, f"there is no field {unknown[:50]!r}{_nearest(unknown, known)}", "unknown_parameter"
            )
        self._values: dict[str, Any] = {name: each for name, each in value.items() if each is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, most: int) -> str | None:
        """Return a line of text of at most *most* characters, None where it is absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip() or len(value) > most or not value.isprintable():
            raise _mistake(name, f"{name} must be one line of text, at most {most} characters")
        return value.strip()

    def one_of(self, name: str, known: Collection[str]) -> str:
        """Return a value that must be there, one of *known*."""
        value = self._values.get(name)
        if value not in known:
            raise _mistake(name, f"{name} must be one of {', '.join(known)}")
        return str(value)

    def seconds(self, name: str, default: float, most: float) -> float:
        """Return a duration above 0."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise _mistake(name, f"{name} must be a number of seconds above 0 and at most {most:g}")
        return float(value)


def _mistake(param: str, message: str, code: str = "invalid_value") -> CallerError:
    return CallerError(message, code=code, param=param)


def _nearest(text: str, known: Collection[str]) -> str:
    near = get_close_matches(text, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
