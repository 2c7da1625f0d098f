"""One event a line, whoever logs it."""

import json
import subprocess
import sys

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
