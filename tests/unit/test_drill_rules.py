"""What a drill expects follows from the configuration, and what it finds wrong is wrong."""

from dataclasses import replace
from typing import Any

import pytest

from sentinel_proxy.config import (
    BreakerConfig,
    Config,
    ProviderConfig,
    RescueConfig,
    RetryConfig,
    TimeoutsConfig,
)
from sentinel_proxy.drill.caller import Got
from sentinel_proxy.drill.chain import DUMMY_KEY, chain_of, drilled
from sentinel_proxy.drill.expected import Expected, after_first_token, before_first_token, complaints
from sentinel_proxy.drill.plays import NO_ANSWER, OVERLOADED, REFUSED, RESET, THROTTLED, TIMEOUT
from sentinel_proxy.drill.policy import Policy
from sentinel_proxy.drill.standin import ANSWER
from sentinel_proxy.errors import ConfigError

OPENAI: dict[str, Any] = {"name": "openai", "kind": "openai", "base_url": "https://api.openai.com/v1"}
KEY = {"api_key": "sk-of-the-reader"}
OLLAMA: dict[str, Any] = {"name": "ollama", "kind": "ollama", "base_url": "http://localhost:11434/sub"}


def config(*providers: dict[str, Any], **sections: Any) -> Config:
    tables = providers or (OPENAI | KEY, OLLAMA)
    return Config(providers=tuple(map(ProviderConfig.model_validate, tables)), **sections)


def policy(*providers: dict[str, Any], streamed: bool = True, **sections: Any) -> Policy:
    settings = config(*providers, **sections)
    links = chain_of(settings).links
    return Policy(
        drilled(settings), [link.pointed_at("http://127.0.0.1:1") for link in links], links, streamed
    )


ALONE = (OPENAI | KEY,)
BOTH: tuple[dict[str, Any], ...] = ()


def test_the_drilled_providers_are_elsewhere_and_have_no_key_of_the_readers() -> None:
    first, second = policy().providers

    assert (first.base_url, second.base_url) == ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/sub")
    headers = dict(first.encode(policy().call()).headers)
    assert headers[b"authorization"] == f"Bearer {DUMMY_KEY}".encode()


def test_a_callers_key_is_still_passed_on_where_it_was() -> None:
    links = chain_of(config(OPENAI, OLLAMA)).links

    assert [link.passes_caller_key for link in links] == [True, False]


def test_what_is_policy_stays_as_it_is_written() -> None:
    written = config(
        timeouts=TimeoutsConfig(idle=7), retry=RetryConfig(attempts=4), rescue=RescueConfig(mode="error")
    )

    kept = drilled(written)

    for section in ("timeouts", "retry", "breaker", "rescue", "health"):
        assert getattr(kept, section) == getattr(written, section)
    assert kept.rate_limit.requests == 0


def test_a_chain_of_nobody_cannot_be_drilled() -> None:
    with pytest.raises(ConfigError, match="no provider to drill"):
        chain_of(Config())


@pytest.mark.parametrize(
    ("chain", "rule", "sections", "times", "by", "asked"),
    [
        pytest.param(BOTH, OVERLOADED, {}, None, 1, 2, id="asked again, then the next"),
        pytest.param(BOTH, OVERLOADED, {}, 1, 0, 2, id="well at the second try"),
        pytest.param(BOTH, RESET, {}, None, 1, 1, id="the next is the better second try"),
        pytest.param(ALONE, RESET, {}, None, None, 2, id="nobody is next"),
        pytest.param(BOTH, NO_ANSWER, {}, None, 1, 1, id="never again"),
        pytest.param(BOTH, REFUSED, {}, None, None, 1, id="the caller's own fault"),
        pytest.param(BOTH, OVERLOADED, {"retry": RetryConfig(attempts=1)}, 1, 1, 1, id="one attempt"),
        pytest.param(
            BOTH, OVERLOADED, {"retry": RetryConfig(attempts=9)}, None, 1, 3, id="the breaker opens"
        ),
        pytest.param(
            ALONE,
            THROTTLED,
            {"retry": RetryConfig(attempts=9)},
            None,
            None,
            4,
            id="the budget's free retries",
        ),
        pytest.param(
            BOTH,
            OVERLOADED,
            {"breaker": BreakerConfig(failure_threshold=1)},
            1,
            1,
            1,
            id="a breaker that opens at once",
        ),
        pytest.param(
            BOTH, OVERLOADED, {"retry": RetryConfig(backoff=2)}, 1, 1, 1, id="a pause too long for a caller"
        ),
    ],
)
def test_who_answers_follows_from_the_policy(
    chain: Any, rule: Any, sections: Any, times: int | None, by: int | None, asked: int
) -> None:
    expected = before_first_token(policy(*chain, **sections), rule, times=times)

    assert (expected.by, expected.asked[0]) == (by, (asked, asked))


@pytest.mark.parametrize(("limit", "by"), [(5.0, 0), (1.0, None)], ids=["waits", "is told"])
def test_a_wait_that_is_asked_for_is_kept_if_the_policy_has_the_patience(
    limit: float, by: int | None
) -> None:
    alone = policy(*ALONE, retry=RetryConfig(retry_after_limit=limit))

    expected = before_first_token(alone, replace(THROTTLED, asks_seconds=2.0), times=1)

    assert expected.by == by
    assert expected.seconds == (2.0 if by == 0 else 0.0)


def test_a_deadline_shorter_than_the_first_wait_leaves_no_time_for_another() -> None:
    hasty = policy(timeouts=TimeoutsConfig(total=20, first_token=30))

    expected = before_first_token(hasty, TIMEOUT, takes=hasty.waits().begin)

    assert (expected.by, expected.status, expected.seconds) == (None, 504, 20)


@pytest.mark.parametrize(
    ("sections", "by"),
    [
        ({}, 1),
        ({"rescue": RescueConfig(mode="error")}, None),
        ({"timeouts": TimeoutsConfig(total=35)}, None),
    ],
    ids=["carried on", "switched off", "too late"],
)
def test_whether_a_broken_stream_goes_on_follows_from_the_policy(sections: Any, by: int | None) -> None:
    assert after_first_token(policy(**sections), takes=30.0).by == by


def test_nobody_carries_on_who_cannot() -> None:
    assert after_first_token(policy(OPENAI | KEY, OLLAMA | {"continuation": "none"})).by is None


GOOD = Got(True, 200, {}, ANSWER, finish_reason="stop", ended=True)
HONEST = {"message": "no", "type": "server_error", "param": None, "code": "stream_interrupted"}
STOPPED = Got(True, 200, {}, "Every word", error=HONEST, in_band=True)
REFUSAL = Got(True, 502, {"x-should-retry": "true"}, error=HONEST | {"code": "all_providers_failed"})
FAILS = Expected(status=502, code="all_providers_failed", helps=True)
STOPS = Expected(code="stream_interrupted", broken=True)


def found(expected: Expected, got: Got) -> list[str]:
    return complaints(expected, got, [1, 1], [0, 1], policy())


@pytest.mark.parametrize(
    ("expected", "got"),
    [(Expected(1), GOOD), (FAILS, REFUSAL), (STOPS, STOPPED)],
    ids=["an answer", "a status", "an error in the stream"],
)
def test_what_is_right_is_not_complained_about(expected: Expected, got: Got) -> None:
    assert found(expected, got) == []


@pytest.mark.parametrize(
    ("expected", "got", "says"),
    [
        pytest.param(Expected(1), replace(GOOD, broken="ReadError"), "ReadError", id="broken off"),
        pytest.param(Expected(1), replace(GOOD, text="Every"), "lacks words", id="half"),
        pytest.param(Expected(1), replace(GOOD, text=ANSWER * 2), "repeats", id="twice"),
        pytest.param(Expected(1), replace(GOOD, ended=False), "without an end", id="no end"),
        pytest.param(Expected(1), replace(GOOD, finish_reason=None), "without an end", id="no finish reason"),
        pytest.param(Expected(0), GOOD, "not openai", id="another one"),
        pytest.param(Expected(1), REFUSAL, "an answer was possible", id="an error for no reason"),
        pytest.param(Expected(1), replace(GOOD, seconds=9.0), "it took 9.0 s", id="too slow"),
        pytest.param(Expected(1, 30.0), replace(GOOD, seconds=9.0), "only", id="too soon"),
        pytest.param(Expected(1, asked={0: (2, 2)}), GOOD, "asked 1 times, not 2", id="too few attempts"),
        pytest.param(FAILS, GOOD, "no answer was possible", id="an answer from nowhere"),
        pytest.param(FAILS, replace(REFUSAL, status=500), "status is 500", id="another status"),
        pytest.param(FAILS, replace(REFUSAL, headers={}), "whether a retry", id="no advice"),
        pytest.param(
            FAILS, replace(REFUSAL, headers={"x-should-retry": "false"}), "x-should-retry", id="bad advice"
        ),
        pytest.param(FAILS, replace(REFUSAL, error={"message": "no"}), "lacks type", id="no envelope"),
        pytest.param(FAILS, STOPPED, "not all_providers_failed", id="another code"),
        pytest.param(
            FAILS, replace(REFUSAL, in_band=True), "inside a stream", id="in the stream without need"
        ),
        pytest.param(STOPS, replace(STOPPED, error=None), "half an answer and no error", id="cut in silence"),
        pytest.param(
            STOPS, replace(STOPPED, ended=True), "what ends good answers", id="an error, then [DONE]"
        ),
        pytest.param(STOPS, replace(STOPPED, in_band=False), "in the middle", id="a second status"),
    ],
)
def test_what_is_wrong_is_told(expected: Expected, got: Got, says: str) -> None:
    assert any(says in complaint for complaint in found(expected, got)), found(expected, got)
