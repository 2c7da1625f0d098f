"""One event a line, whoever logs it."""

import json
import subprocess
import sys

import pytest

from muster_observability.traces import trace_of

PROGRAM = """
import logging, sys
from muster_observability import logs
logs.configure("info", sys.argv[1])
log = logs.get("proxy")
log.info("request", request_id="a\\nb", model="\\u00e9")
log.debug("hidden")
logging.getLogger("library").warning("from a library %s", "x")
prompt = "CANARY"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
    logging.getLogger("library").exception("failed too")
"""


def run(log_format: str, program: str = PROGRAM) -> list[str]:
    """The lines that a process logs in this format."""
    done = subprocess.run(
        [sys.executable, "-c", program, log_format], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    """Line breaks are escaped, so that a value cannot forge a line; the standard library's logs come along."""
    events = [json.loads(line) for line in run("json")]

    assert [event["event"] for event in events] == ["request", "from a library x", "failed", "failed too"]
    assert events[0]["request_id"] == "a\nb"
    assert (events[0]["part"], events[0]["level"]) == ("proxy", "info")
    assert all(event["timestamp"].endswith("Z") for event in events)
    assert "ZeroDivisionError" in events[2]["exception"]


def test_a_traceback_shows_no_variables() -> None:
    """They hold prompts and keys."""
    for log_format in ("json", "console"):
        assert "ZeroDivisionError" in "".join(run(log_format))
        assert "CANARY" not in "".join(run(log_format))


BROKEN = """
import asyncio, logging, sys
from muster_observability import logs
logs.configure("info", sys.argv[1])
log = logs.get("agent")
prompt = "CAN" + "ARY"  # lines of source are shown

def fail():
    try:
        raise KeyError(prompt)
    except KeyError as cause:
        raise ValueError(prompt) from cause

def fail_again():
    try:
        fail()
    except ValueError:
        inside = [TypeError(prompt), UnicodeDecodeError("utf-8", b"x", 0, 1, prompt)]
        raise ExceptionGroup(prompt, inside)

try:
    fail_again()
except ExceptionGroup as error:
    error.add_note(prompt)
    log.exception("failed")
    logging.getLogger("uvicorn.error").error("failed too", exc_info=True)

async def main():
    task = asyncio.get_running_loop().create_task(lost())
    await asyncio.wait([task])

async def lost():
    raise ValueError(prompt)

asyncio.run(main())
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_texts(log_format: str) -> None:
    """Whoever raises an exception may quote a prompt in it: a log has its kind, frames, causes and parts."""
    lines = run(log_format, BROKEN)
    whole = "\n".join(lines)

    assert "CANARY" not in whole
    for kind in ("KeyError", "ValueError", "ExceptionGroup", "TypeError", "UnicodeDecodeError"):
        assert kind in whole
    assert "in fail" in whole
    assert "Task exception was never retrieved" in whole


def test_causes_that_go_round_in_a_circle() -> None:
    """They are told once each."""
    one, other = ValueError(), TypeError()
    one.__cause__, other.__cause__ = other, one

    told = trace_of(one)

    assert (told.count("ValueError"), told.count("TypeError")) == (1, 1)


TWICE = """
import sys, structlog
from muster_observability import logs
logs.configure(sys.argv[1], sys.argv[2])
logs.bind(worker=1)
fields = {"request_id": "a\\nb", "model": "\\u00e9", "tokens": None}
logs.get("proxy").info("request", **fields)
logs.info("proxy", "request", fields)
"""


@pytest.mark.parametrize(("level", "log_format"), [("info", "json"), ("debug", "json"), ("info", "console")])
def test_the_short_way_writes_the_same_line(level: str, log_format: str) -> None:
    """But for its time: fields, context and order."""
    lines = twice(level, log_format)
    if log_format == "json":
        one, other = ({**json.loads(line), "timestamp": ""} for line in lines)
    else:
        one, other = (line[line.index("[") :] for line in lines)

    assert one == other


def test_the_short_way_heeds_the_level() -> None:
    """What is not to be logged is not."""
    assert twice("warning", "json") == []


def twice(level: str, log_format: str) -> list[str]:
    """The lines of a process that logs one event both ways."""
    command = [sys.executable, "-c", TWICE, level, log_format]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
