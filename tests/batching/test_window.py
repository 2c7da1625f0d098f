"""When a window's batch goes, and who is in it."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muster_batching import LimitError
from muster_batching.drain import UNMEASURED_RETRY_S
from muster_batching.window import Window

SIZE = 3
TIMEOUT_S = 2.0
MAX_WAITING = 5
MAX_WAIT_S = 8.0


@pytest.fixture
def window() -> Window[str]:
    """A window of three places that stays open for 2 s, with room for five that wait 8 s more."""
    return Window(SIZE, TIMEOUT_S, MAX_WAITING, MAX_WAIT_S)


def add(window: Window[str], names: str, now_s: float) -> None:
    """Add items named by one letter each."""
    for name in names:
        window.add(name, now_s)


def test_an_empty_window_has_nothing_to_do(window: Window[str]) -> None:
    """While none waits no time is due and no batch comes."""
    assert window.next_wakeup_s is None
    assert window.take_batch(100.0) == []
    assert window.take_expired(100.0) == []
    assert window.take_all(100.0) == []
    assert (len(window), repr(window)) == (0, "<Window waiting=0 running=False>")


def test_a_batch_goes_when_its_time_is_up(window: Window[str]) -> None:
    """A batch that is not full goes when the timeout has passed since its first item, in the order of coming."""
    add(window, "a", 10.0)
    add(window, "b", 11.0)

    assert window.next_wakeup_s == 12.0
    assert window.take_batch(11.9) == []
    assert window.take_batch(12.0) == ["a", "b"]
    assert window.next_wakeup_s is None


def test_a_full_batch_goes_at_once(window: Window[str]) -> None:
    """With all places taken nothing is waited for, and who does not fit stays for the next batch."""
    add(window, "abcd", 10.0)

    assert window.next_wakeup_s == -math.inf
    assert window.take_batch(10.0) == ["a", "b", "c"]
    assert len(window) == 1


def test_one_batch_runs_at_a_time(window: Window[str]) -> None:
    """The next batch forms while one runs and goes as soon as that has ended, though its time was up before."""
    add(window, "abcd", 10.0)
    assert window.take_batch(10.0) == ["a", "b", "c"]
    add(window, "e", 13.0)
    assert window.take_batch(13.0) == []

    window.end_batch()

    assert window.take_batch(13.0) == ["d", "e"]


def test_an_item_that_leaves_does_not_go(window: Window[str]) -> None:
    """Who leaves is not in the batch, and its time counts for nobody else."""
    add(window, "a", 10.0)
    add(window, "b", 11.5)

    assert window.discard("a", 11.6)

    assert window.next_wakeup_s == 13.5
    assert window.take_batch(13.5) == ["b"]
    assert not window.discard("b", 13.6)


def test_what_waits_too_long_for_earlier_batches_expires(window: Window[str]) -> None:
    """While a batch runs, an item expires when its window and the longest wait have passed."""
    add(window, "abc", 10.0)
    assert window.take_batch(10.0) == ["a", "b", "c"]
    add(window, "d", 11.0)
    add(window, "e", 12.0)

    assert window.next_wakeup_s == 21.0
    assert window.take_expired(20.9) == []
    assert window.take_expired(21.0) == ["d"]
    assert window.next_wakeup_s == 22.0
    assert window.take_expired(30.0) == ["e"]


def test_as_many_wait_as_may(window: Window[str]) -> None:
    """The window is full with the last item that may wait, and no more once one has left."""
    add(window, "abcd", 10.0)
    assert not window.is_full
    add(window, "e", 10.0)
    assert window.is_full

    window.discard("c", 10.0)

    assert not window.is_full


def test_all_are_taken_at_the_end(window: Window[str]) -> None:
    """Closing takes every item out, in the order of coming."""
    add(window, "abcd", 10.0)

    assert window.take_all(10.0) == ["a", "b", "c", "d"]
    assert len(window) == 0


def test_the_drain_rate_says_when_to_come_again(window: Window[str]) -> None:
    """Before the first batch the estimate is a guess; then it is the place over the pace of departures."""
    assert window.retry_after_s(0.0) == UNMEASURED_RETRY_S
    add(window, "abc", 0.0)
    window.take_batch(6.0)  # three in 6 s, so 2 s for each
    add(window, "abcd", 6.0)

    assert window.retry_after_s(6.0) == 10


def test_time_in_which_nobody_waits_says_nothing(window: Window[str]) -> None:
    """The pace is that of the time in which somebody waited; an idle hour does not slow it down."""
    add(window, "abc", 0.0)
    window.take_batch(6.0)

    assert window.retry_after_s(3600.0) == 2


def test_stats_count_what_was_taken(window: Window[str]) -> None:
    """Batches are counted with their sizes, and the mean is theirs."""
    assert window.stats.avg_batch_size == 0.0
    add(window, "abcd", 10.0)
    window.take_batch(10.0)
    window.end_batch()
    window.take_batch(12.0)

    stats = window.stats

    assert (stats.total_requests, stats.total_batches, stats.avg_batch_size) == (4, 2, 2.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 1.0, 1, 1.0), "max_batch_size"),
        ((1, -0.1, 1, 1.0), "timeout_s"),
        ((1, math.inf, 1, 1.0), "timeout_s"),
        ((1, 1.0, 0, 1.0), "max_waiting"),
        ((1, 1.0, 1, math.nan), "max_wait_s"),
    ],
)
def test_numbers_outside_their_range_are_refused(arguments: tuple[int, float, int, float], name: str) -> None:
    """A window that could wait for ever, or for nobody, is not made; the error names the number."""
    with pytest.raises(LimitError) as caught:
        Window[str](*arguments)

    assert caught.value.name == name


@dataclass
class Model:
    """What must be so, written plainly: a list and a flag."""

    waiting: list[tuple[int, float]] = field(default_factory=list)
    is_running: bool = False

    def is_due(self, now_s: float) -> bool:
        """Whether a batch may go."""
        if self.is_running or not self.waiting:
            return False
        return len(self.waiting) >= SIZE or self.waiting[0][1] + TIMEOUT_S <= now_s


class WindowMachine(RuleBasedStateMachine):
    """Plays arrivals, departures, batches and time in any order against the plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window[int](SIZE, TIMEOUT_S, MAX_WAITING, MAX_WAIT_S)
        self.model = Model()
        self.now_s = 0.0
        self.last = 0

    @rule(seconds=st.integers(0, 12))
    def advance(self, seconds: int) -> None:
        """Time passes."""
        self.now_s += seconds

    @precondition(lambda self: not self.window.is_full)
    @rule()
    def arrive(self) -> None:
        """An item comes."""
        self.last += 1
        self.window.add(self.last, self.now_s)
        self.model.waiting.append((self.last, self.now_s))

    @precondition(lambda self: self.last)
    @rule(data=st.data())
    def depart(self, data: st.DataObject) -> None:
        """An item leaves; whether it waited is told."""
        item = data.draw(st.integers(1, self.last))
        waiting = [entry for entry in self.model.waiting if entry[0] != item]

        assert self.window.discard(item, self.now_s) is (waiting != self.model.waiting)
        self.model.waiting = waiting

    @rule()
    def take(self) -> None:
        """A batch is asked for: the first ones if it is due, nobody else."""
        is_due = self.model.is_due(self.now_s)
        expected = [item for item, _ in self.model.waiting[:SIZE]] if is_due else []

        assert self.window.take_batch(self.now_s) == expected
        if expected:
            self.model.is_running = True
            del self.model.waiting[:SIZE]

    @rule()
    def end(self) -> None:
        """The call has ended."""
        self.window.end_batch()
        self.model.is_running = False

    @rule()
    def expire(self) -> None:
        """What has waited too long is asked for."""
        longest_s = TIMEOUT_S + MAX_WAIT_S
        expired = [entry for entry in self.model.waiting if entry[1] + longest_s <= self.now_s]

        assert self.window.take_expired(self.now_s) == [item for item, _ in expired]
        self.model.waiting = self.model.waiting[len(expired) :]

    @invariant()
    def counts_and_time_agree(self) -> None:
        """As many wait as the model says, and the wake-up time is due exactly when a batch may go."""
        assert len(self.window) == len(self.model.waiting)
        assert self.window.is_full is (len(self.model.waiting) >= MAX_WAITING)
        due_s = self.window.next_wakeup_s
        assert (due_s is None) is (not self.model.waiting)
        if due_s is not None and not self.model.is_running:
            assert (due_s <= self.now_s) is self.model.is_due(self.now_s)


TestWindow = WindowMachine.TestCase
