"""Joining two texts: what is a repetition, what is not, and when that is known."""

import pytest

from sentinel_proxy.wire.seam import MIN_OVERLAP_CHARS, RESTART_CHARS, TAIL_CHARS, Seam, SeamError

SENT = "The quick brown fox jumps over the lazy dog, and the dog, being lazy, lets it jump. "
"""Longer than what makes a restart, so that both kinds of repetition are possible."""


def joined(sent: str, said: str, *, trims: bool = False) -> str:
    """Return what is shown of *said* after *sent*."""
    seam = Seam(sent, trims=trims)
    return seam.push(said) + seam.close()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        pytest.param("Then it runs.", "Then it runs.", id="goes straight on"),
        pytest.param("lets it jump. Then it runs.", "Then it runs.", id="repeats the last words"),
        pytest.param(SENT + "Then it runs.", "Then it runs.", id="repeats everything"),
        pytest.param(SENT, "", id="repeats everything and says no more"),
        pytest.param("it jump. ", "", id="repeats the last words and says no more"),
        pytest.param("jump. Then", "jump. Then", id="too short to be a repetition"),
        pytest.param("The quick answer", "The quick answer", id="begins like the beginning, by chance"),
        pytest.param("", "", id="says nothing"),
    ],
)
def test_only_a_proven_repetition_is_cut_away(said: str, shown: str) -> None:
    assert joined(SENT, said) == shown


def test_a_repetition_needs_so_many_characters() -> None:
    tail = SENT[-MIN_OVERLAP_CHARS:]

    assert joined(SENT, tail + "x") == "x"
    assert joined(SENT, tail[1:] + "x") == tail[1:] + "x"


def test_dots_and_rules_are_no_repetition() -> None:
    sent = "Contents\n" + "-" * 12

    assert joined(sent, "-" * 12 + "|") == "-" * 12 + "|"


def test_a_repetition_may_begin_so_far_back_and_no_further() -> None:
    sent = "".join(f"<{number:04}>" for number in range(200))

    assert joined(sent, sent[-TAIL_CHARS:] + "!") == "!"
    assert joined(sent, sent[-TAIL_CHARS - 1 :] + "!") == sent[-TAIL_CHARS - 1 :] + "!"


def test_of_two_possible_repetitions_the_longer_one_counts() -> None:
    sent = "tick tock, tick tock, "

    assert joined(sent, "tick tock, tick tock, boom") == "boom"


def test_a_restart_that_goes_another_way_cannot_be_joined() -> None:
    seam = Seam(SENT, trims=False)

    with pytest.raises(SeamError, match="another way"):
        seam.push(SENT[: RESTART_CHARS + 3] + "?")


def test_a_restart_that_stops_half_way_cannot_be_joined() -> None:
    seam = Seam(SENT, trims=False)
    assert seam.push(SENT[: RESTART_CHARS + 3]) == ""

    with pytest.raises(SeamError, match="repeated the beginning"):
        seam.close()


def test_what_may_still_be_a_repetition_is_held_back() -> None:
    seam = Seam("one two three four", trims=False)

    assert seam.push("three ") == ""
    assert seam.push("fourteen") == "teen"
    assert seam.push(" fifteen") == " fifteen"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        pytest.param("\nNext.", "Next.", id="a line of its own"),
        pytest.param(" Next.", "Next.", id="a space of its own"),
        pytest.param("\n\nNext.", "\nNext.", id="one is its own, the other is meant"),
        pytest.param("Next.", "Next.", id="none"),
        pytest.param("first line.\n\nNext.", "\nNext.", id="after a repetition it is meant"),
    ],
)
def test_a_model_that_was_told_to_go_on_begins_a_line_of_its_own(said: str, shown: str) -> None:
    assert joined("The first line.\n", said, trims=True) == shown


def test_a_model_that_completes_the_text_means_its_white_space() -> None:
    assert joined("The first line.\n", "\nNext.", trims=False) == "\nNext."
    assert joined("Hello,", " world", trims=True) == " world"
