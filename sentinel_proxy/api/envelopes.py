"""What goes wrong behind a router, in the envelope that every error of ours has."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sentinel_proxy.api import errors
from sentinel_proxy.api.headers import NOTHING_ASKED
from sentinel_proxy.errors import CallerError


async def _refused(_: Request, error: Exception) -> Response:
    """Our router's own 404 and 405, in the envelope."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        answer = errors.answer(404, "there is nothing at this path; the API is below /v1", code="unknown_url")
    elif error.status_code == 405:
        answer = errors.answer(405, "this path does not take that method", code="method_not_allowed")
    else:
        answer = errors.answer(error.status_code, str(error.detail))
    return _response(answer, error.headers or {})


async def _mistaken(_: Request, error: Exception) -> Response:
    """A mistake of an operator's; applications' own never come here."""
    assert isinstance(error, CallerError)
    return _response(errors.of_caller(error))


async def _broken(_: Request, __: Exception) -> Response:
    """A mistake of ours behind the router; the error goes on to those who report it."""
    return _response(errors.of_mistake())


def _response(answer: errors.ErrorAnswer, more: Mapping[str, str] = MappingProxyType({})) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers + NOTHING_ASKED}
    return Response(answer.body, answer.status, {**headers, **more})


HANDLERS: Final[Mapping[Any, Any]] = MappingProxyType(
    {HTTPException: _refused, CallerError: _mistaken, Exception: _broken}
)
"""For `Starlette(exception_handlers=...)`."""
