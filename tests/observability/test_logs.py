"""One event a line, whoever logs it."""

import json
import subprocess
import sys

import pytest

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


def run(log_format: str) -> list[str]:
    """The lines that a process logs in this format."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True, check=True
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
