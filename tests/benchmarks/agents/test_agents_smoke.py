"""The agent service under kills and load: a short version, and that what is broken would be seen."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from muster_agent.testing import scripted_agent
from tests.benchmarks.agents import kills, load
from tests.benchmarks.agents.conversations import Conversation
from tests.benchmarks.agents.scripted_model import reply
from tests.benchmarks.agents.tools import LEDGER
from tests.benchmarks.agents.verdict import Verdict
from tests.benchmarks.peers import process_tree


def test_nothing_is_lost_or_doubled_when_processes_die() -> None:
    """Eight runs end well, and their clients hear everything once, though the service is killed three times."""
    said: list[str] = []
    found = kills.wreaked("sqlite", kills.Sizes(runs=8, kills=3, limit_s=90), said.append)
    assert [claim.broken for claim in found.verdict.claims] == [[]] * 7
    assert found.verdict.statuses == {"success": 8}
    assert sorted(said) == ["kills"] * 3 + ["runs"] * 8


def test_the_load_counts_what_it_says() -> None:
    """Every run of a small load ends well, and each token of a stream has a delay."""
    steps: list[int] = []
    sizes = load.Sizes(threads=4, at_once=4, steps=2, think_s=0.05, rounds=2)
    found = load.measured("sqlite", sizes, lambda: steps.append(1))
    opened, waited, streamed, thinking = found.phases
    assert found.failed == 0
    assert len(steps) == sizes.total
    assert [each.model_calls for each in found.phases] == [4, 16, 16, 8]
    assert (len(opened.delays_ms), len(waited.delays_ms)) == (0, 0)
    assert (len(streamed.delays_ms), len(thinking.delays_ms)) == (8 * 9, 4 * 9)  # a word, and then eight
    assert min(streamed.delays_ms) > 0
    assert (streamed.cpu_ms is not None) == process_tree.HAS_PROC


@asynccontextmanager
async def held(folder: Path) -> AsyncGenerator[Conversation]:
    """A conversation that nothing has disturbed, with its service still there."""
    agents = kills.AGENTS["agents"]
    async with (
        scripted_agent(improvise=reply, agents=agents, database_url=f"sqlite:///{folder}/agent.db") as agent,
        aiohttp.ClientSession() as session,
    ):
        conversation = Conversation(session, [agent.url], 0)
        await conversation.held()
        yield conversation


async def test_the_verdict_sees_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that was not heard, one heard twice, and a line written twice: each breaks its claim and no other."""
    ledger = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(ledger))
    async with held(tmp_path) as conversation:
        whole = list(conversation.heard)
        assert await broken(conversation, ledger) == []
        for heard in (whole[:3] + whole[4:], [*whole[:3], whole[2], *whole[3:]], whole[:-1]):
            conversation.heard = heard
            assert await broken(conversation, ledger) == [
                "clients that came back heard every event once, as the log has them"
            ]
        conversation.heard = whole
        await asyncio.to_thread(ledger.write_text, "0\n0\n")
        assert "no tool that changes the world ran twice for one call" in await broken(conversation, ledger)


async def broken(conversation: Conversation, ledger: Path) -> list[str]:
    """The claims that are not true."""
    verdict = Verdict()
    await verdict.judge([conversation], ledger)
    return [claim.name for claim in verdict.claims if claim.broken]
