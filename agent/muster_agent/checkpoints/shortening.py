"""Which of a thread's checkpoints can go without its present state going with them.

Most channels are whole in every checkpoint. Two kinds of state are not in the newest one of the graph itself:

* A subgraph that remembers between its calls (`checkpointer=True`) has a namespace of its own without task identifiers,
  and its newest checkpoint there may be older than any of the graph's that are kept.
* A `DeltaChannel` is put together from what was written since its last snapshot. A checkpoint's metadata counts the
  steps since then (`counters_since_delta_snapshot`), and as many of its ancestors are needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Key: TypeAlias = tuple[str, str]
"""A checkpoint of a thread: its namespace and its identifier."""

_TASK = ":"
"""Stands before a task's identifier in the namespace of one call of a subgraph."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a checkpoint.

    Attributes:
        namespace: Whose it is; empty for the graph itself.
        checkpoint_id: Grows with time, over all namespaces.
        parent_id: The one before it.
        counters: Updates and steps since each delta channel's last snapshot.
    """

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    counters: Mapping[str, Sequence[int]] | None

    @property
    def key(self) -> Key:
        """What names it within its thread."""
        return self.namespace, self.checkpoint_id

    @property
    def ancestors(self) -> int:
        """How many of its ancestors its state is made of."""
        return max((steps for _, steps in (self.counters or {}).values()), default=0)


def superfluous(known: Iterable[Known], keep: int) -> list[Key]:
    """The checkpoints of a thread that neither its newest `keep` states nor its subgraphs' memory need."""
    by_key = {each.key: each for each in known}
    newest = sorted((each.checkpoint_id for each in by_key.values() if not each.namespace), reverse=True)
    if len(newest) <= keep:
        return []
    oldest = newest[keep - 1]
    needed = {key for key, each in by_key.items() if each.checkpoint_id >= oldest}
    needed |= _memories(by_key)
    for key in tuple(needed):
        needed.update(_lineage(by_key, by_key[key]))
    return [key for key in by_key if key not in needed]


def _memories(by_key: Mapping[Key, Known]) -> set[Key]:
    """The newest checkpoint of each subgraph that remembers between its calls."""
    newest: dict[str, Key] = {}
    for namespace, checkpoint_id in sorted(by_key):
        if namespace and _TASK not in namespace:
            newest[namespace] = (namespace, checkpoint_id)
    return set(newest.values())


def _lineage(by_key: Mapping[Key, Known], known: Known) -> Iterable[Key]:
    """Those ancestors of a checkpoint that its state is made of."""
    each: Known | None = known
    for _ in range(known.ancestors):
        if each is None or each.parent_id is None:
            return
        key = (each.namespace, each.parent_id)
        yield key
        each = by_key.get(key)
