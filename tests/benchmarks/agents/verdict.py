"""What is true when everything has ended, however often processes were killed before."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.benchmarks.agents.conversations import Conversation
from tests.benchmarks.agents.events import Event


@dataclass
class Claim:
    """Something that must be true of every conversation.

    Attributes:
        name: The claim.
        of: How many it was asked of.
        broken: What was found where it is not true.
    """

    name: str
    of: int = 0
    broken: list[str] = field(default_factory=list[str])

    def ask(self, conversation: Conversation, found: object, *, is_true: bool) -> None:
        """Ask it of a conversation; `found` is shown where it is not true."""
        self.of += 1
        if not is_true:
            self.broken.append(f"{conversation!r}: {found}")


class Verdict:
    """What was found in all conversations.

    Attributes:
        claims: What must be true.
        statuses: How the runs ended.
        attempts: Of each run that was streamed.
        writes: Lines in the ledger.
        broken_off: Calls of the tool that writes them of which nobody knows whether they did.
    """

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.attempts: list[int] = []
        self.writes = 0
        self.broken_off = 0
        self._ended = Claim("every client was told of its run's end")
        self._once = Claim("every order made one run, and it succeeded")
        self._line = Claim("no thread forked: no checkpoint has two children")
        self._whole = Claim("every conversation is whole: each message once, in order")
        self._ledger = Claim("no tool that changes the world ran twice for one call")
        self._told = Claim("a call that was broken off is told of as such, all others gave their result")
        self._events = Claim("clients that came back heard every event once, as the log has them")

    @property
    def claims(self) -> list[Claim]:
        """In the order in which they are shown."""
        return [self._ended, self._once, self._line, self._whole, self._ledger, self._told, self._events]

    @property
    def is_good(self) -> bool:
        """Whether every claim is true."""
        return not any(claim.broken for claim in self.claims)

    async def judge(self, conversations: Sequence[Conversation], ledger: Path) -> None:
        """Ask everything of every conversation."""
        written = await asyncio.to_thread(_lines, ledger)
        for each in conversations:
            runs = await each.runs()
            self._ended.ask(each, runs, is_true=each.is_over)
            self._ask_runs(each, runs)
            if not each.is_over:
                continue
            await self._ask_line(each)
            await self._ask_tool(each, written[str(each.number)])
            if each.is_streamed:
                self._ask_events(each, await each.replay())

    def _ask_runs(self, each: Conversation, runs: Sequence[Mapping[str, Any]]) -> None:
        self.statuses.update(str(run["status"]) for run in runs)
        found = [(run["run_id"], run["status"]) for run in runs]
        self._once.ask(each, found, is_true=found == [(each.run_id, "success")])

    async def _ask_line(self, each: Conversation) -> None:
        history = await each.history()
        parents = Counter(
            state["parent_checkpoint"]["checkpoint_id"] for state in history if state["parent_checkpoint"]
        )
        roots = sum(state["parent_checkpoint"] is None for state in history)
        forks = {parent: count for parent, count in parents.items() if count > 1}
        self._line.ask(each, forks or f"{roots} beginnings", is_true=not forks and roots == 1)

    async def _ask_tool(self, each: Conversation, writes: int) -> None:
        messages = await each.messages()
        kinds = [message["type"] for message in messages]
        self._whole.ask(each, kinds, is_true=kinds == ["human", "ai", "tool", "ai", "tool", "ai"])
        self._ledger.ask(each, f"{writes} lines", is_true=writes <= 1)
        said = [str(message["content"]) for message in messages if message.get("name") == "append_line"]
        is_broken_off = len(said) == 1 and "Nobody knows" in said[0]
        gave_result = writes == 1 and said == [f"wrote {each.number}"]
        self._told.ask(each, (writes, said), is_true=is_broken_off or gave_result)
        self.writes += writes
        self.broken_off += is_broken_off

    def _ask_events(self, each: Conversation, log: Sequence[Event]) -> None:
        heard, logged = [event.told for event in each.heard], [event.told for event in log]
        numbers = [number for number, _, _ in heard]
        is_whole = numbers == list(range(1, len(heard) + 1))
        self._events.ask(each, _difference(heard, logged), is_true=is_whole and heard == logged)
        attempts = [orjson.loads(data)["attempt"] for _, name, data in logged if name == "metadata"]
        self.attempts.append(max(attempts, default=0))

    def document(self) -> dict[str, Any]:
        """It as JSON."""
        return {
            "is_good": self.is_good,
            "statuses": dict(self.statuses),
            "claims": [{"name": c.name, "of": c.of, "broken": c.broken} for c in self.claims],
            "attempts": self.attempts,
            "writes": self.writes,
            "broken_off": self.broken_off,
        }


def _lines(ledger: Path) -> Counter[str]:
    """How often each line was written."""
    return Counter(ledger.read_text("utf-8").splitlines() if ledger.exists() else ())


def _difference(
    heard: Sequence[tuple[int, str, bytes]], logged: Sequence[tuple[int, str, bytes]]
) -> dict[str, Any]:
    """Numbers and names where two accounts part."""
    parts = next((at for at, (one, two) in enumerate(zip(heard, logged, strict=False)) if one != two), None)
    around = slice(0, 3) if parts is None else slice(max(0, parts - 1), parts + 2)
    return {
        "heard": len(heard),
        "logged": len(logged),
        "part_at": parts,
        "heard_there": [event[:2] for event in heard[around]],
        "logged_there": [event[:2] for event in logged[around]],
    }
