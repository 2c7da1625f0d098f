"""The model of an engine, run in real time on the event loop."""

import asyncio
from dataclasses import dataclass

from muster_batching.samples import EngineSample
from muster_batching.testing import EngineModel, EngineProfile, EngineRequest, FirstToken
from muster_proxy.testing.engine_metrics import EngineTotals


@dataclass(eq=False)
class Generation:
    """One answer that grows.

    Attributes:
        request: What was asked.
        finish_reason: How it will end.
        news: Set whenever it has grown, if `is_stream`, and when it is complete.
        is_stream: See `news`.
        asked_s: When it was asked, on the model's clock.
        tokens: So many it has.
        cached_tokens: Of the prompt, known once it has one.
    """

    request: EngineRequest
    finish_reason: str
    news: asyncio.Event
    is_stream: bool
    asked_s: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether it has all its tokens."""
        return self.tokens == self.request.output_tokens


class EngineRun:
    """Runs the model on the running loop's clock, from the first request on.

    Args:
        profile: The engine to be.
        speed: Seconds of the model's clock in a second of the loop's.

    Attributes:
        model: The model.
        totals: What the engine counts beside the model.
    """

    def __init__(self, profile: EngineProfile, speed: float) -> None:
        self.model = EngineModel(profile)
        self.totals = EngineTotals()
        self._speed = speed
        self._live: dict[str, Generation] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, generation: Generation) -> None:
        """Give the model a request."""
        generation.asked_s = self._now_s()
        self.model.add(generation.request, now_s=generation.asked_s)
        self._live[generation.request.id] = generation
        self._look()

    def abort(self, generation: Generation) -> None:
        """Break an answer off, unless it is complete."""
        if self._live.pop(generation.request.id, None) is not None:
            self.totals.ends["abort"] += 1
            self.model.abort(generation.request.id, now_s=self._now_s())
            self._look()

    def sample(self) -> EngineSample:
        """What the model's metrics say now."""
        self._look()
        return self.model.sample()

    def close(self) -> None:
        """Stop: an answer that is not complete never will be."""
        if self._timer is not None:
            self._timer.cancel()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() * self._speed

    def _look(self) -> None:
        """Bring the model up to now, pass on what it made, and come back when its next step ends."""
        for event in self.model.advance(now_s=self._now_s()):
            generation = self._live.get(event.id)
            if generation is None:  # its client has just gone
                continue
            if isinstance(event, FirstToken):
                generation.cached_tokens = event.cached_tokens
                self.totals.began(generation.request.prompt_tokens, event.at_s - generation.asked_s)
            else:
                self._end(generation)
        for generation in self._live.values():
            self._grow(generation, self.model.tokens_of(generation.request.id))
        self._wind()

    def _end(self, generation: Generation) -> None:
        del self._live[generation.request.id]
        self.totals.ends[generation.finish_reason] += 1
        self._grow(generation, generation.request.output_tokens)

    def _grow(self, generation: Generation, tokens: int) -> None:
        if tokens == generation.tokens:
            return
        self.totals.generation_tokens += tokens - generation.tokens
        generation.tokens = tokens
        if generation.is_stream or generation.is_complete:
            generation.news.set()

    def _wind(self) -> None:
        self.close()
        due_s = self.model.next_step_s()
        if due_s is not None:
            self._timer = asyncio.get_running_loop().call_at(due_s / self._speed, self._look)
