"""Numbers that several processes count together, and what a scrape of any of them tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sentinel_proxy.board import Board, Counter, Histogram, Numbers
from sentinel_proxy.events import Bus, CallFinished
from sentinel_proxy.metrics import Live, Metrics
from sentinel_proxy.model import Endpoint, Feed, Load, Outcome, StateHealth
from sentinel_proxy.resilience.breaker import State


def summed(numbers: Numbers) -> dict[str, float]:
    """Return the first cell of each key, over every process that *numbers* sees."""
    sums: dict[str, float] = {}
    for said in numbers.everyone():
        for key, values in said.numbers.items():
            sums[key] = sums.get(key, 0.0) + values[0]
    return sums


class TestBoard:
    def test_what_one_process_counts_all_can_read(self) -> None:
        board = Board(3)
        processes = [board.numbers(number) for number in range(3)]
        for number, numbers in enumerate(processes):
            Counter(numbers, "calls").inc(number + 1)

        assert [summed(numbers) for numbers in processes] == [{"calls": 6}] * 3

    def test_whoever_takes_the_place_of_another_counts_on(self) -> None:
        board = Board(2)
        Counter(board.numbers(1), "calls").inc(5)
        board.left(1)

        Counter(board.numbers(1), "calls").inc()

        assert summed(board.numbers(0)) == {"calls": 6}

    def test_what_the_dead_have_counted_stays_and_is_told_as_theirs(self) -> None:
        board = Board(2)
        Counter(board.numbers(1), "calls").inc(5)
        board.left(1)

        mine, theirs = board.numbers(0).everyone()

        assert (mine.alive, theirs.alive, theirs.numbers) == (True, False, {"calls": [5.0]})

    def test_a_number_that_finds_no_room_is_counted_by_its_process_alone(self) -> None:
        board = Board(2, room_bytes=64)  # two words of its own, and six more
        numbers = board.numbers(0)
        Counter(numbers, "first").inc()
        Counter(numbers, "second").inc()
        Counter(numbers, "third").inc()

        assert summed(numbers) == {"first": 1, "second": 1, "third": 1}
        assert summed(board.numbers(1)) == {"first": 1, "second": 1}

    def test_a_record_that_was_being_written_when_its_process_was_killed_never_was(self) -> None:
        board = Board(2)
        Counter(board.numbers(0), "calls").inc()
        whole = bytes(board._memory)
        Counter(board.numbers(0), "more").inc()
        board._memory[:8] = whole[:8]  # all is written but for the word that makes it count

        assert summed(board.numbers(1)) == {"calls": 1}
        Counter(board.numbers(0), "another").inc(2)
        assert summed(board.numbers(1)) == {"calls": 1, "another": 2}

    @given(
        st.lists(
            st.tuples(st.integers(0, 2), st.text(max_size=20), st.integers(0, 1000), st.booleans()),
            max_size=60,
        )
    )
    def test_the_sum_is_all_that_was_counted_whoever_died_in_between(
        self, counted: list[tuple[int, str, int, bool]]
    ) -> None:
        board, expected = Board(3, room_bytes=1 << 16), dict[str, float]()
        processes = [board.numbers(number) for number in range(3)]
        for process, key, amount, dies in counted:
            Counter(processes[process], key).inc(amount)
            expected[key] = expected.get(key, 0.0) + amount
            if dies:
                board.left(process)
                processes[process] = board.numbers(process)

        assert [summed(numbers) for numbers in processes] == [expected] * 3


class TestHistogram:
    @given(st.lists(st.floats(0, 100), max_size=50))
    def test_each_value_falls_under_the_least_bound_that_is_not_below_it(self, values: list[float]) -> None:
        numbers, bounds = Numbers(), (1.0, 10.0, 50.0)
        histogram = Histogram(numbers, "h", bounds)
        for value in values:
            histogram.observe(value)

        (said,) = numbers.everyone()
        total, *counts = said.numbers["h"]

        assert total == pytest.approx(sum(values))
        assert sum(counts) == len(values)
        for place, bound in enumerate(bounds, 1):
            assert sum(counts[:place]) == sum(value <= bound for value in values)


class Process:
    """One of several workers: what it hears, holds and tells."""

    def __init__(self, numbers: Numbers, providers: tuple[str, ...] = ("openai",)) -> None:
        self.bus = Bus()
        self.load, self.feed, self.state = Load(), Feed(), StateHealth()
        self.breaker = State.CLOSED
        self.metrics = Metrics(providers, numbers)
        self.metrics.listen(self.bus)
        self.metrics.read_live(
            Live(
                lambda: providers,
                self.load,
                self.feed,
                self.state,
                lambda _: self.breaker,
                lambda _: self.breaker is State.CLOSED,
            )
        )

    def call(self, seconds: float = 0.2) -> None:
        self.bus.emit(
            CallFinished(
                "t", Endpoint.CHAT, None, Outcome.SUCCESS, 200, "openai", "m", seconds, 0.0004, None, None
            )
        )

    def scraped(self) -> dict[str, float]:
        """Return every sample, as `name{label values}`, the values by the names of the labels."""
        return {
            f"{sample.name}{{{','.join(sample.labels.values())}}}": sample.value
            for family in text_string_to_metric_families(self.metrics.exposition("")[0].decode())
            for sample in family.samples
        }


@pytest.fixture
def board() -> Board:
    return Board(2)


class TestScrape:
    def test_calls_of_all_workers_are_told_by_each(self, board: Board) -> None:
        processes = [Process(board.numbers(0)), Process(board.numbers(1))]
        processes[0].call(seconds=0.2)
        processes[1].call(seconds=40)
        processes[1].call(seconds=700)

        for process in processes:
            scraped = process.scraped()
            assert scraped["sentinel_requests_total{chat.completions,success,openai}"] == 3
            assert scraped["sentinel_request_duration_seconds_sum{chat.completions,openai}"] == 740.2
            assert scraped["sentinel_request_duration_seconds_bucket{chat.completions,60.0,openai}"] == 2
            assert scraped["sentinel_request_duration_seconds_bucket{chat.completions,+Inf,openai}"] == 3
            assert scraped["sentinel_request_duration_seconds_count{chat.completions,openai}"] == 3

    def test_what_is_held_now_is_summed_once_it_was_noted(self, board: Board) -> None:
        scraped, sibling = Process(board.numbers(0)), Process(board.numbers(1))
        scraped.load.in_flight, sibling.load.in_flight = 2, 3
        assert scraped.scraped()["sentinel_in_flight_requests{}"] == 2

        sibling.metrics.publish()

        assert scraped.scraped()["sentinel_in_flight_requests{}"] == 5

    def test_what_a_dead_worker_held_is_gone_and_what_it_refused_is_not(self, board: Board) -> None:
        scraped, sibling = Process(board.numbers(0)), Process(board.numbers(1))
        sibling.load.in_flight, sibling.load.shed = 3, 4
        sibling.metrics.publish()
        board.left(1)

        told = scraped.scraped()

        assert (told["sentinel_in_flight_requests{}"], told["sentinel_shed_total{}"]) == (0, 4)

    def test_its_successor_goes_on_from_what_was_refused(self, board: Board) -> None:
        scraped, sibling = Process(board.numbers(0)), Process(board.numbers(1))
        sibling.load.shed = 4
        sibling.metrics.publish()
        board.left(1)

        successor = Process(board.numbers(1))
        successor.load.shed = 1
        successor.metrics.publish()
        successor.metrics.publish()

        assert scraped.scraped()["sentinel_shed_total{}"] == 5

    @pytest.mark.parametrize("number", [0, 1], ids=["the one that is scraped", "its sibling"])
    def test_one_worker_that_sees_less_is_enough_to_tell(self, board: Board, number: int) -> None:
        processes = [Process(board.numbers(0)), Process(board.numbers(1))]
        processes[number].breaker = State.OPEN
        processes[number].state.up = False
        processes[number].metrics.publish()

        told = processes[0].scraped()

        assert told["sentinel_breaker_state{openai}"] == 2
        assert told["sentinel_provider_up{openai}"] == 1  # some calls go there
        assert told["sentinel_state_up{}"] == 0

    def test_a_provider_that_has_left_the_chain_is_not_told_of(self, board: Board) -> None:
        sibling = Process(board.numbers(1), ("openai", "gone"))
        assert "sentinel_provider_up{gone}" in sibling.scraped()
        board.left(1)

        told = Process(board.numbers(1)).scraped()

        assert "sentinel_provider_up{openai}" in told
        assert "sentinel_provider_up{gone}" not in told

    def test_alone_it_tells_what_it_would_with_siblings(self, board: Board) -> None:
        alone, beside = Process(Numbers()), Process(board.numbers(0))
        for process in (alone, beside):
            process.call()
            process.load.shed = 2

        assert alone.scraped() == beside.scraped()
