"""What a client wants to hear of a thread."""

from collections.abc import Sequence
from dataclasses import dataclass

_CHANNELS = {"input.requested": "input"}


@dataclass(frozen=True, slots=True)
class Subscription:
    """Channels, and the graphs inside of a graph whose events are wanted.

    Attributes:
        channels: `values`, `messages`, `tools`, `lifecycle`, `input` and so on. `custom` is every custom event,
            `custom:NAME` those of one name.
        namespaces: Only what graphs below one of these say; none for all. A segment without `:` stands for every task
            of that node.
        depth: How many levels below its namespace an event may be; None for all.
    """

    channels: frozenset[str]
    namespaces: Sequence[Sequence[str]] = ()
    depth: int | None = None

    def wants(self, method: str, namespace: Sequence[str]) -> bool:
        """Whether an event is for this subscriber."""
        channel = _CHANNELS.get(method, method)
        if channel not in self.channels and not (channel.startswith("custom:") and "custom" in self.channels):
            return False
        return not self.namespaces or any(self._reaches(prefix, namespace) for prefix in self.namespaces)

    def _reaches(self, prefix: Sequence[str], namespace: Sequence[str]) -> bool:
        if not _is_below(prefix, namespace):
            return False
        return self.depth is None or len(namespace) - len(prefix) <= self.depth


def _is_below(prefix: Sequence[str], namespace: Sequence[str]) -> bool:
    if len(prefix) > len(namespace):
        return False
    return all(
        wanted in {segment, segment.partition(":")[0]}
        for wanted, segment in zip(prefix, namespace, strict=False)
    )
