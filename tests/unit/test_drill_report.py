"""The report card of a drill: for people in 80 columns, for programs by contract."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from sentinel_proxy.config import load
from sentinel_proxy.drill.chain import Chain, chain_of
from sentinel_proxy.drill.report import SIGNS, Card, as_dict, explained, verdict
from sentinel_proxy.drill.runner import Report, Result, Verdict
from sentinel_proxy.drill.scenarios import SCENARIOS
from sentinel_proxy.terminal import WIDTH, Screen

CATALOGUE = Path(__file__).parents[2] / "docs" / "drill.md"
WAYS = {(True, False): "both", (True,): "streamed", (False,): "not streamed"}


def result(
    id: str = "cut",
    *,
    streamed: bool = True,
    verdict: Verdict = "passed",
    caller: str = "an answer, ended by ollama",
    seconds: float = 0.5,
    complaints: tuple[str, ...] = (),
    title: str = "Cut stream",
) -> Result:
    attempts = {} if verdict == "skipped" else {"openai": 1, "ollama": 2}
    injected = "resets the connection"
    return Result(id, title, streamed, injected, verdict, caller, attempts, seconds, complaints)


FAILED = result(verdict="failed", caller="half an answer", complaints=("no answer was possible",))


def chain(*left_out: str) -> Chain:
    return Chain(chain_of(load(None, {}).config).links, left_out)


def printed(
    *results: Result, colour: bool = False, encoding: str = "utf-8", left_out: Sequence[str] = ()
) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    card = Card(Screen(out, colour=colour, signs=SIGNS), "sentinel.toml")
    card.open(chain(*left_out))
    for each in results:
        card.take(each)
    card.close(Report(chain(*left_out), results))
    out.seek(0)
    return out.read()


def rows(text: str) -> list[str]:
    """Return the lines of the card between its header and what follows the table."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if "what goes wrong" in line)
    return [line for line in lines[start + 1 : lines.index("", start)]]


def test_json_has_the_keys_of_the_contract_and_no_other() -> None:
    document = as_dict(Report(chain(), [result(), FAILED, result(verdict="skipped", caller="no such thing")]))

    assert list(document) == ["scenarios", "passed", "total"]
    assert {tuple(entry) for entry in document["scenarios"]} == {
        ("id", "title", "verdict", "caller", "attempts", "seconds")
    }
    assert (document["passed"], document["total"]) == (1, 2)
    assert [entry["verdict"] for entry in document["scenarios"]] == ["passed", "failed", "skipped"]


def test_json_names_each_run_of_a_scenario() -> None:
    document = as_dict(Report(chain(), [result(), result(streamed=False)]))

    assert [entry["id"] for entry in document["scenarios"]] == ["cut", "cut-whole"]
    assert [entry["title"] for entry in document["scenarios"]] == ["Cut stream", "Cut stream, not streamed"]
    assert document["scenarios"][0]["attempts"] == {"openai": 1, "ollama": 2}


def test_what_was_wrong_is_told_beside_the_json() -> None:
    assert list(explained([FAILED, result()])) == ["cut: no answer was possible"]


def test_two_runs_that_end_alike_have_one_line() -> None:
    text = printed(result(), result(streamed=False))

    assert len(rows(text)) == 1
    assert " ".join(rows(text)[0].split()) == "✓ Cut stream an answer, ended by ollama 1 2 0.5"


@pytest.mark.parametrize(
    "other",
    [
        result(streamed=False, caller="an answer by openai"),
        result(streamed=False, seconds=2.0),
        result(streamed=False, verdict="failed", complaints=("wrong",)),
    ],
    ids=["another end", "another time", "a failure"],
)
def test_a_run_that_ends_otherwise_has_its_own_line(other: Result) -> None:
    lines = rows(printed(result(), other))

    assert len(lines) == 2
    assert "not streamed" in lines[1]


def test_two_failures_have_two_lines_even_if_they_are_alike() -> None:
    failed_too = result(streamed=False, verdict="failed", caller="half an answer", complaints=("wrong",))

    assert len(rows(printed(FAILED, failed_too))) == 2


def test_a_failure_is_told_in_whole_sentences() -> None:
    text = printed(FAILED)

    told = text[text.index("Cut stream, streamed") :]
    assert re.findall(r"^  (\w[\w ]{11,13})(?=\S)", told, re.MULTILINE)
    for words in (
        "openai resets the connection",
        "half an answer, after 0.5 s",
        "openai once, ollama twice",
        "no answer was possible",
        "1 of 1 runs failed.",
    ):
        assert words in told


def test_what_was_left_out_says_why() -> None:
    text = printed(
        result(),
        result("x", verdict="skipped", caller="there is no provider to go to"),
        left_out=["x is left out: its plugin"],
    )

    assert "left out: there is no" in text
    assert "x is left out: its plugin" in text
    assert "All 1 runs passed" in text
    assert "1 was left out" in text


@pytest.mark.parametrize("colour", [False, True], ids=["plain", "coloured"])
def test_no_line_is_wider_than_the_page(colour: bool) -> None:
    long = "a-provider-with-a-name-of-sixty-four-characters-which-is-the-limit"
    text = printed(
        result(
            caller=f"an answer, ended by {long}", title="A title that is much longer than the column it is in"
        ),
        result("x", verdict="failed", caller=long, complaints=(" ".join([long] * 4),)),
        colour=colour,
    )

    visible = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, visible.splitlines())) <= WIDTH
    assert (visible != text) is colour


def test_an_encoding_without_signs_gets_letters() -> None:
    text = printed(result(), FAILED, encoding="ascii")

    assert [line.split()[0] for line in rows(text)] == ["+", "x"]
    assert "openai -> ollama" in text


def test_a_card_that_nobody_reads_falls_silent() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    screen = Screen(Gone(), colour=False, signs=SIGNS)

    Card(screen, "sentinel.toml").open(chain())

    assert screen.gone


def test_the_verdict_counts_runs() -> None:
    assert verdict(Report(chain(), [result(), FAILED])) == "1 of 2 runs failed."


def test_every_scenario_has_an_id_of_its_own() -> None:
    ids = [scenario.id for scenario in SCENARIOS]

    assert len(set(ids)) == len(ids)
    assert not any(id.endswith("-whole") for id in ids)


def test_the_catalogue_is_documented_as_it_is_played() -> None:
    documented = re.findall(
        r"^\| `([\w-]+)` \| (.+) \| (.+) \| (.+) \|$", CATALOGUE.read_text(), re.MULTILINE
    )

    assert documented == [
        (scenario.id, scenario.title, scenario.injected, WAYS[tuple(scenario.ways)]) for scenario in SCENARIOS
    ]
