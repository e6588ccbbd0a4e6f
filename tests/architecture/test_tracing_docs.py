"""What the page about traces says is what traces say."""

import re
from pathlib import Path

import pytest

import sentinel_proxy
from sentinel_proxy.errors import FailureKind
from sentinel_proxy.events import CallFinished
from sentinel_proxy.model import Attempt, Call, Endpoint, Outcome, Usage
from sentinel_proxy.tracing import SWITCHES, words

PAGE = (Path(sentinel_proxy.__file__).parent.parent / "docs" / "tracing.md").read_text()


def documented(kind: str) -> set[str]:
    """Return the attributes that the table of *kind* lists."""
    rows = PAGE.partition(f"| attribute of {kind} | |\n|---|---|\n")[2].partition("\n\n")[0]
    return {name for row in rows.splitlines() for name in re.findall("`([^`]+)`", row.split("|")[1])}


def finished(call: Call) -> CallFinished:
    return CallFinished(
        *(
            "t",
            Endpoint.CHAT,
            call,
            Outcome.TRUNCATED,
            200,
            "openai",
            "m-1",
            1.0,
            0.1,
            0.5,
            Usage(1, 1),
            "code",
        )
    )


def test_every_attribute_of_a_call_is_documented() -> None:
    call = Call(
        "t", Endpoint.CHAT, b"", {}, "m", True, 0.0, 1.0, client="web", trail=[Attempt("openai", "200")]
    )

    assert set(words.of_call(finished(call))) == documented("a call")


def test_every_attribute_of_an_attempt_is_documented() -> None:
    attempt = Attempt("openai", "503", FailureKind.OVERLOADED, model="m")

    assert set(words.of_attempt(attempt, "overloaded", "m-1")) == documented("an attempt")


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_documented(name: str) -> None:
    assert f"`{name}`" in PAGE.partition("| variable |")[2].partition("switches traces on")[0]
