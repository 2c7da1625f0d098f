"""MCP servers as processes: what they are given, and that they end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from tests.agent.tools.mcp_servers.opened import Tenant, opened

SERVERS = Path(__file__).parent / "mcp_servers"


def box(*command: str, **limits: Any) -> dict[str, dict[str, Any]]:
    """A server named `box` that Python runs."""
    return {"box": {"command": sys.executable, "args": list(command), **limits}}


PACKAGE = str(SERVERS / "over_stdio.py")
UNRULY = str(SERVERS / "unruly.py")


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is more than a zombie."""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()[:1] not in ("", "Z")


async def end_of(*pids: int) -> None:
    """Wait until none of these runs. Not all are children of the test's, so there is nothing to await."""
    while any(runs(pid) for pid in pids):
        await anyio.sleep(0.01)


async def test_a_server_gets_nothing_of_our_environment_but_what_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PATH, HOME and LANG are ours, `env` is the operator's, and it runs where it is told."""
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    monkeypatch.setenv("SEARCH_KEY", "s3")
    monkeypatch.setenv("HOME", "/home/of-a-test")
    own = {"TOKEN": "${SEARCH_KEY}", "MODE": "x"}

    async with opened(box(PACKAGE, env=own, cwd=str(tmp_path))) as tools:
        seen = json.loads(await tools["box_environment"].ainvoke({}))

    added_by_python = {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    assert seen.keys() - added_by_python <= {"PATH", "HOME", "LANG", "TOKEN", "MODE", "folder"}
    assert (seen["HOME"], seen["TOKEN"], seen["MODE"]) == ("/home/of-a-test", "s3", "x")
    assert Path(seen["folder"]) == tmp_path


async def test_each_tenant_has_a_process_of_its_own_and_all_end_with_the_service() -> None:
    """A tenant keeps its process; none is left behind."""
    tenant = Tenant()
    async with opened(box(PACKAGE), tenant) as tools:
        pids: list[int] = []
        for name in ("red", "blue", "red"):
            tenant.name = name
            pids.append(int(await tools["box_pid"].ainvoke({})))
        assert [runs(pid) for pid in pids] == [True] * 3

    red, blue, red_again = pids
    assert red == red_again != blue
    assert [runs(pid) for pid in pids] == [False] * 3  # at once: they are waited for


async def test_a_server_that_dies_in_a_call_is_told_and_started_again_for_the_next() -> None:
    """The call is not sent a second time: it may have been carried out."""
    async with opened(box(PACKAGE)) as tools:
        before = await tools["box_pid"].ainvoke({})
        with pytest.raises(ToolComplaint, match="Whether it did something is not known"):
            await tools["box_die"].ainvoke({})

        assert await tools["box_pid"].ainvoke({}) != before


async def test_what_a_server_prints_is_logged_in_short_lines() -> None:
    """At debug, with the server's name."""
    with structlog.testing.capture_logs() as lines:
        async with opened(box(PACKAGE)) as tools:
            assert await tools["box_grumble"].ainvoke({}) == "grumbled"

    printed = [line for line in lines if line["event"] == "mcp server printed"]
    assert {(line["server"], line["log_level"]) for line in printed} == {("box", "debug")}
    assert [line["line"] for line in printed] == ["x" * 500, "second line"]


async def test_a_stubborn_server_and_its_child_are_killed() -> None:
    """Neither heeds the end of its input or a request to end."""
    async with opened(box(UNRULY, "stubborn")) as tools:
        answer = await tools["box_act"].ainvoke({})
        pids = [int(pid) for pid in answer.split()]
        assert [runs(pid) for pid in pids] == [True, True]

    await end_of(*pids)


async def test_a_refusal_has_no_characters_that_cannot_be_seen() -> None:
    """What a server says instead of an answer is read by the model, too."""
    async with opened(box(UNRULY, "refusing")) as tools:
        with pytest.raises(ToolComplaint, match=r"^not today$"):
            await tools["box_act"].ainvoke({})


async def test_a_line_that_does_not_end_ends_the_session() -> None:
    """Memory is bounded; the model is told that the outcome is not known."""
    async with opened(box(UNRULY, "endless", most_message_bytes=100_000)) as tools:
        with pytest.raises(ToolComplaint, match="connection to the tool broke"):
            await tools["box_act"].ainvoke({})


async def test_cancelling_the_service_ends_its_servers() -> None:
    """However the toolkit is left, no process stays."""
    pids: list[int] = []

    async def serve() -> None:
        async with opened(box(UNRULY, "stubborn")) as tools:
            pids.extend(int(pid) for pid in (await tools["box_act"].ainvoke({})).split())
            ready.set()
            await anyio.sleep_forever()

    ready = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        await ready.wait()
        group.cancel_scope.cancel()

    await end_of(*pids)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["-c", "import time; time.sleep(600)"], "did not answer within 0.3 s"),
        (["-c", "print('hello')"], "ended before it answered"),
    ],
)
async def test_a_server_that_does_not_speak_the_protocol_is_named(command: list[str], said: str) -> None:
    """Slow, or no server at all."""
    limits = {"timeout_s": 0.3} if "within" in said else {}

    with pytest.raises(ToolkitError, match=f"mcp: server 'box' {said}"):
        async with opened(box(*command, **limits)):
            pass


@pytest.mark.parametrize("wrong", [{"command": "/no/such/program"}, {"cwd": "/no/such/folder"}])
async def test_a_server_that_cannot_be_started_is_named(wrong: dict[str, str]) -> None:
    """A wrong command, or a wrong folder."""
    with pytest.raises(ToolkitError, match="'box' cannot be started: its command or its folder is not there"):
        async with opened(box(PACKAGE, **wrong)):
            pass
