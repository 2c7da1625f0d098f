"""The requests inside a simulated engine, and those that decode counted together."""

import heapq
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import TypeAlias

from muster_batching.testing.kv_blocks import Holding

Rank: TypeAlias = tuple[int, int]
"""A place in the engine's queue, lower first: priority, then order of arrival."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request as the engine sees it.

    Attributes:
        id: Its name, new to the engine.
        prompt_tokens: Length of the prompt, at least 1.
        output_tokens: Length that the answer will have, at least 1.
        blocks: Names of the full blocks of its text, prompt and then answer, in order and no name twice: two
            requests have the same name where their texts are the same up to that block's end (chained hashes).
            Blocks beyond these are its own.
        priority: Lower comes first, under the policy `priority`.

    Raises:
        ValueError: A length is less than 1.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    blocks: Row[int] = ()
    priority: int = 0

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"expected a prompt and an answer of a token or more, got {self}")

    @property
    def most_kv_tokens(self) -> int:
        """Tokens of it that are ever in the KV cache: all but the answer's last, which nothing reads."""
        return self.prompt_tokens + self.output_tokens - 1


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine: it waits while it holds no blocks, decodes once it has a last step, else prefills.

    Attributes:
        request: What was asked.
        rank: Its place in the queue.
        tokens: Output tokens; while it decodes, less the step in which it began to.
        computed_tokens: Of its text, in the KV cache; not kept up while it decodes.
        last_step: The count of steps at which its answer is complete.
        holding: Its blocks; while it decodes, those that it began with.
        cached_tokens: Prompt tokens found in the cache when it was first taken up.
    """

    request: EngineRequest
    rank: Rank
    tokens: int = 0
    computed_tokens: int = 0
    last_step: int | None = None
    holding: Holding = field(default_factory=Holding)
    cached_tokens: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has blocks, so a place in the batch."""
        return self.holding.blocks > 0

    @property
    def text_tokens(self) -> int:
        """Prompt and answer together, less the step in which it began to decode."""
        return self.request.prompt_tokens + self.tokens

    @property
    def left_tokens(self) -> int:
        """Of what it has, still to be computed before it can decode."""
        return self.text_tokens - self.computed_tokens

    def tokens_after(self, steps: int) -> int:
        """Output tokens, given how many steps the engine has done."""
        return self.tokens if self.last_step is None else self.tokens + steps


class Decoding:
    """The sequences that decode, counted in such a way that a step need not touch them.

    Each gains a token in every step, so its length after s steps is s plus a constant of its own. It takes a
    block in the steps that find its length one past whole blocks; those that take theirs in the same steps are
    counted together.

    Args:
        block_size: Tokens in a block.

    Attributes:
        count: How many decode.
    """

    def __init__(self, block_size: int) -> None:
        self.count = 0
        self._block_size = block_size
        self._text_tokens = 0  # the sum of the constants
        self._taking = [
            0
        ] * block_size  # how many take a block in step i, i + block_size, ...; the first is 0
        self._finishing: list[tuple[int, Rank, Sequence]] = []  # a heap; who left early stays until it leads

    def join(self, sequence: Sequence, steps: int) -> None:
        """A sequence decodes from now on, `steps` being done."""
        sequence.last_step = steps + sequence.request.output_tokens - sequence.tokens
        heapq.heappush(self._finishing, (sequence.last_step, sequence.rank, sequence))
        sequence.tokens -= steps
        self._add(sequence, 1)

    def leave(self, sequence: Sequence, steps: int) -> None:
        """A sequence decodes no more, `steps` being done."""
        self._add(sequence, -1)
        sequence.tokens += steps
        sequence.last_step = None

    def context_tokens(self, steps: int) -> int:
        """What all together have to read in the next step."""
        return self._text_tokens + self.count * steps

    def finished(self, steps: int) -> list[Sequence]:
        """Those whose answer is complete now, for the caller to have them leave."""
        finished: list[Sequence] = []
        while self._finishing and self._finishing[0][0] <= steps:
            last_step, _, sequence = heapq.heappop(self._finishing)
            if sequence.last_step == last_step:
                finished.append(sequence)
        return finished

    def next_finish(self) -> int:
        """The count of steps at which the next answer is complete; some sequence must decode."""
        while self._finishing[0][2].last_step != self._finishing[0][0]:
            heapq.heappop(self._finishing)
        return self._finishing[0][0]

    def blocks_taken(self, first: int, steps: int) -> int:
        """Blocks that all together take in so many steps from step `first` on."""
        rounds, rest = divmod(steps, self._block_size)
        return rounds * self.count + sum(self._taking_in(first + step) for step in range(rest))

    def steps_within(self, blocks: int, first: int) -> int:
        """Steps from step `first` on that so many blocks suffice for; some sequence must decode."""
        rounds, blocks = divmod(blocks, self.count)
        steps = rounds * self._block_size
        while (blocks := blocks - self._taking_in(first + steps)) >= 0:
            steps += 1
        return steps

    def _taking_in(self, step: int) -> int:
        return self._taking[step % self._block_size]

    def _add(self, sequence: Sequence, by: int) -> None:
        self.count += by
        self._text_tokens += by * sequence.text_tokens
        self._taking[(1 - sequence.text_tokens) % self._block_size] += by
