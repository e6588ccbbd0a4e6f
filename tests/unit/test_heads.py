"""What follows from the names in a head is found out once for each list of names."""

from sentinel_proxy.wire.heads import HEADS, MOST_NAMES, Names, by_names


class Asked:
    """Counts how often it had to decide."""

    def __init__(self) -> None:
        self.times = 0
        self.how_long = by_names(self._decide)

    def _decide(self, names: Names, more: int) -> int:
        self.times += 1
        return len(names) + more


def test_heads_with_the_same_names_are_decided_about_once_whatever_their_values() -> None:
    asked = Asked()

    answers = [asked.how_long([(b"a", value), (b"b", b"")], 0) for value in (b"1", b"2")]

    assert (answers, asked.times) == ([2, 2], 1)


def test_another_order_another_number_and_another_question_are_decided_anew() -> None:
    asked = Asked()

    for names in (b"ab", b"ba", b"aab"):
        asked.how_long([(bytes([name]), b"") for name in names], 0)
    answer = asked.how_long([(b"a", b""), (b"b", b"")], 5)

    assert (answer, asked.times) == (7, 4)


def test_more_names_than_honest_programs_send_are_not_remembered() -> None:
    asked = Asked()
    head = [(b"%d" % number, b"") for number in range(MOST_NAMES + 1)]

    assert [asked.how_long(head, 0), asked.how_long(head, 0), asked.times] == [
        MOST_NAMES + 1,
        MOST_NAMES + 1,
        2,
    ]


def test_heads_that_have_not_come_for_long_are_forgotten() -> None:
    asked = Asked()
    heads = [[(b"%d" % number, b"")] for number in range(HEADS + 1)]

    for head in (*heads, heads[0]):
        asked.how_long(head, 0)

    assert asked.times == HEADS + 2
