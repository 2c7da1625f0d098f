"""How often a worker that dies is started again, and how soon."""

from dataclasses import dataclass


@dataclass(slots=True)
class Patience:
    """Pauses that grow with the deaths in a row, and an end to them.

        pause = min(LAST, first * 2 ^ (deaths - 1)) seconds

    Attributes:
        first_pause_s: The first.
        last_pause_s: The longest.
        most_deaths: So many in a row and starting it again is no cure.
        steady_s: After a life of that length the next death is the first again.
        deaths: In a row, until now.
    """

    first_pause_s: float = 0.5
    last_pause_s: float = 30.0
    most_deaths: int = 5
    steady_s: float = 60.0
    deaths: int = 0

    def pause_s(self, lived_s: float) -> float | None:
        """Hear of a death after so many seconds of life; the seconds to wait, or None to give up."""
        self.deaths = 1 if lived_s >= self.steady_s else self.deaths + 1
        if self.deaths > self.most_deaths:
            return None
        return min(self.last_pause_s, self.first_pause_s * 2 ** (self.deaths - 1))
