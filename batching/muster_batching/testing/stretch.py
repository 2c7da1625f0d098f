"""The time of forward steps in a row."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Stretch:
    """Steps in a row that differ only in that their context grows: when each ends has a closed form.

    Attributes:
        start_s: When the first begins.
        extra_s: More that the first takes.
        step_s: What each takes, its context apart.
        context_s: What reading the context takes in the first.
        growth_s: By how much that grows from each to the next.
        limit: How many they are, 1 or more.
        done: How many have ended.
    """

    start_s: float
    extra_s: float
    step_s: float
    context_s: float
    growth_s: float
    limit: int
    done: int = 0

    def cut_short(self) -> None:
        """Let the step under way be the last: the next one has another batch."""
        self.limit = self.done + 1

    def end_s(self, steps: int) -> float:
        """When so many steps, 1 or more, have ended."""
        context_s = steps * self.context_s + steps * (steps - 1) // 2 * self.growth_s
        return self.start_s + self.extra_s + steps * self.step_s + context_s

    def steps_by(self, now_s: float) -> int:
        """How many have ended by then.

        The end of step n is a quadratic in n: solved for n, then put right where rounding was off by one.
        """
        if self.end_s(self.limit) <= now_s:
            return self.limit
        steps = self._solve(now_s) if self.limit > self.done + 1 else self.done
        while steps > self.done and self.end_s(steps) > now_s:
            steps -= 1
        while self.end_s(steps + 1) <= now_s:
            steps += 1
        return steps

    def _solve(self, now_s: float) -> int:
        half_s = self.growth_s / 2
        linear_s = self.step_s + self.context_s - half_s
        passed_s = max(0.0, now_s - self.start_s - self.extra_s)
        steps = 2 * passed_s / (linear_s + math.sqrt(linear_s**2 + 4 * half_s * passed_s))
        return max(self.done, int(steps))
