"""Who the clients of a benchmark are: mixes of requests, arrivals, tenants, agents; all drawn from a seed.

A workload is a set of scripts (`muster_batching.testing.simulation`), played in virtual time or over HTTP. Two
runs of one benchmark see the same lengths, arrivals and sessions, whichever way the requests go. How much is
sent is told in units of the engine's capacity, which is measured in the same run.
"""

import dataclasses
import math
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from muster_batching.testing.simulation import Call, Record, Script, Start, Think
from muster_batching.tickets import RequestClass, SessionId, TenantId

SEED = 7
"""Of every workload, unless another is asked for."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal distribution of token counts, cut off at both ends.

    Attributes:
        median: Half are shorter.
        spread: Standard deviation of the logarithm.
        least: The shortest.
        most: The longest.
    """

    median: float
    spread: float
    least: int
    most: int

    def draw(self, source: random.Random, scale: float) -> int:
        """Draw one, all lengths times `scale`; 1 at least."""
        drawn = source.lognormvariate(math.log(self.median), self.spread)
        return max(1, round(scale * min(self.most, max(self.least, drawn))))

    def longest(self, scale: float) -> int:
        """The most that `draw` gives."""
        return max(1, round(scale * self.most))


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests look like.

    Attributes:
        inputs: Of the prompt, in tokens.
        outputs: Of the answer, in tokens.
        scale: All lengths are multiplied by it, to suit a small engine.
    """

    inputs: Lengths
    outputs: Lengths
    scale: float = 1.0

    def calls(self, seed: str, **fields: object) -> Iterator[Call]:
        """Requests of this mix without end; `fields` are those of `Call` that all have in common.

        Clients limit their answers to the longest that the mix has, as people do who set one limit for all.
        """
        source = draws(seed)
        most = self.outputs.longest(self.scale)
        while True:
            tokens = self.inputs.draw(source, self.scale)
            call = Call(tokens, self.outputs.draw(source, self.scale), max_output_tokens=most)
            yield dataclasses.replace(call, size_bytes=300 + 4 * tokens, **fields)


CHAT = Mix(Lengths(400, 0.8, 16, 4000), Lengths(150, 0.7, 8, 1000))
"""People: a question with some history or a passage of text, answers from a word to a page."""

LINES = Mix(Lengths(500, 0.5, 64, 4000), Lengths(150, 0.5, 16, 600))
"""Lines of an offline job: much alike."""


def draws(seed: str) -> random.Random:
    """A source of numbers of its own for each use, so that one workload's draws never shift another's."""
    return random.Random(seed)  # noqa: S311  a workload, not a secret


def once(call: Call) -> Script:
    """A client with one request."""
    yield call


def again_and_again(calls: Iterator[Call], until_s: float) -> Script:
    """A client that sends the next request as soon as one ends, as long as that is before `until_s`.

    Turned away, it waits for as long as it is told.
    """
    ended_s = 0.0
    while ended_s < until_s:
        record = yield next(calls)
        ended_s = until_s if record is None or record.ended_s is None else record.ended_s
        if record is not None and record.outcome == "turned_away":
            wait_s = float(record.retry_after_s or 1)
            ended_s += wait_s
            yield Think(wait_s)


def arrivals(
    calls: Iterable[Call], rate_per_s: float, source: random.Random, is_open: Callable[[float], bool]
) -> Script:
    """Clients that know nothing of each other: a Poisson process of single requests.

    Args:
        calls: What they send.
        rate_per_s: How many come, on average.
        source: Of the gaps.
        is_open: Asked at each arrival, with the seconds since the first could come; False ends it.
    """
    at_s = 0.0
    for call in calls:
        gap_s = source.expovariate(rate_per_s)
        at_s += gap_s
        yield Think(gap_s)
        if not is_open(at_s):
            return
        yield Start(once(call))


def before(until_s: float) -> Callable[[float], bool]:
    """Open until a time."""
    return lambda at_s: at_s < until_s


@dataclass(slots=True)
class Job:
    """A batch of lines, and how many of them have not ended.

    Attributes:
        left: Lines that have not ended.
    """

    left: int

    def line(self, call: Call) -> Script:
        """One line."""
        yield call
        self.left -= 1

    def is_open(self, _at_s: float) -> bool:
        """Whether a line is left."""
        return self.left > 0


# Agents.


@dataclass(frozen=True, slots=True)
class AgentShape:
    """What an agent's sessions look like; in tokens and seconds.

    Attributes:
        system_tokens: Instructions and tools, the same in every session.
        results: What a tool gives back, the first question too.
        answers: What the model says in a turn.
        turns: The fewest and the most turns of a session.
        tool_s: Median of the time between two turns.
        tool_spread: Standard deviation of its logarithm.
        shortest_tool_s: It is cut off there, and at `longest_tool_s`.
        longest_tool_s: See there.
        scale: Token counts are multiplied by it.
    """

    system_tokens: int = 1500
    results: tuple[int, int] = (500, 1500)
    answers: tuple[int, int] = (80, 200)
    turns: tuple[int, int] = (8, 12)
    tool_s: float = 2.2
    tool_spread: float = 0.5
    shortest_tool_s: float = 1.0
    longest_tool_s: float = 5.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One model call of a session: the whole conversation so far goes in."""

    think_s: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """One run of an agent, drawn beforehand so that every way sees the same.

    Attributes:
        number: Which.
        system_tokens: Length of the beginning that all share.
        turns: Its calls.
    """

    number: int
    system_tokens: int
    turns: Sequence[Turn]

    def block_names(self, block_size: int) -> list[int]:
        """Names of all full blocks of its text, first to last."""
        shared = self.system_tokens // block_size
        last = self.turns[-1]
        own = (self.number + 1) << 20
        count = (last.input_tokens + last.output_tokens) // block_size
        return [*range(shared), *range(own + shared, own + count)]

    @property
    def mean_own_tokens(self) -> float:
        """Context that it holds beyond what all share, averaged over its turns."""
        held = [turn.input_tokens + turn.output_tokens - self.system_tokens for turn in self.turns]
        return sum(held) / len(held)


@dataclass(slots=True)
class SessionRun:
    """What became of a session: when its first call was sent, when its last ended, and whether all were answered."""

    number: int
    began_s: float
    ended_s: float
    is_complete: bool


def sessions(count: int, shape: AgentShape, seed: str) -> list[Session]:
    """Draw so many sessions."""
    source = draws(seed)
    return [_session(number, shape, source) for number in range(count)]


def _session(number: int, shape: AgentShape, source: random.Random) -> Session:
    context = system_tokens = round(shape.scale * shape.system_tokens)
    turns: list[Turn] = []
    for turn in range(source.randint(*shape.turns)):
        context += max(1, round(shape.scale * source.randint(*shape.results)))
        answer = max(1, round(shape.scale * source.randint(*shape.answers)))
        drawn_s = source.lognormvariate(math.log(shape.tool_s), shape.tool_spread)
        think_s = min(shape.longest_tool_s, max(shape.shortest_tool_s, drawn_s)) if turn else 0.0
        turns.append(Turn(think_s, context, answer))
        context += answer
    return Session(number, system_tokens, turns)


RETRIES = 2
"""How often a client whose call was turned away asks again: the OpenAI SDK's default."""


def agents(
    waiting: Iterator[Session], seen: list[SessionRun], block_size: int, most_output_tokens: int
) -> Script:
    """One place in a closed population: when a session ends, the next one begins.

    Args:
        waiting: The sessions to come, shared by all places.
        seen: Where ended sessions are noted.
        block_size: The engine's.
        most_output_tokens: The limit that the agent's framework sets on every answer.
    """
    for session in waiting:
        yield from _agent(session, seen, block_size, most_output_tokens)


def _agent(
    session: Session, seen: list[SessionRun], block_size: int, most_output_tokens: int
) -> Generator[Call | Think | Start, Record | None, None]:
    run: SessionRun | None = None
    names = session.block_names(block_size)
    for number, turn in enumerate(session.turns, 1):
        if turn.think_s:
            yield Think(turn.think_s)
        record = yield from _asked(
            Call(
                turn.input_tokens,
                turn.output_tokens,
                tenant=TenantId("agents"),
                session=SessionId(f"session-{session.number}"),
                max_output_tokens=most_output_tokens,
                blocks=names[: (turn.input_tokens + turn.output_tokens) // block_size],
                size_bytes=300 + 4 * turn.input_tokens,
                ends_session=number == len(session.turns),
            )
        )
        if run is None:
            run = SessionRun(session.number, record.sent_s, 0.0, is_complete=False)
            seen.append(run)
        run.ended_s = record.ended_s or record.sent_s
        if record.outcome != "completed":
            return
    if run is not None:
        run.is_complete = True


def _asked(call: Call) -> Generator[Call | Think | Start, Record | None, Record]:
    """Make a call as an SDK does: asked to come again later, it does."""
    record = yield call
    for _ in range(RETRIES):
        if record is None or record.outcome != "turned_away":
            break
        yield Think(float(record.retry_after_s or 1))
        record = yield call
    if record is None:
        raise TypeError("a script was sent no record of its call")
    return record


def interactive(mix: Mix, seed: str, **fields: object) -> Iterator[Call]:
    """People's requests."""
    return mix.calls(seed, request_class=RequestClass.INTERACTIVE, **fields)
