"""What the `mcp` package would not let a server do: `python unruly.py MODE`.

It speaks just enough of the protocol to be opened, prints a line that is no message first, and then, when its
tool is called, misbehaves: `endless` writes a line that never ends, `refusing` answers with an error in which words
hide, `stubborn` answers its own process id and that of a child, and neither ends when asked to.
"""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

TOOL = {"name": "act", "description": "Act.", "inputSchema": {"type": "object", "properties": {}}}


def say(number: object, result: dict[str, Any], kind: str = "result") -> None:
    """Answer a request."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": number, kind: result}) + "\n")
    sys.stdout.flush()


def act(mode: str, number: object) -> None:
    """Misbehave."""
    if mode == "endless":
        while True:
            sys.stdout.write("x" * 10_000)
    if mode == "refusing":
        say(number, {"code": -32000, "message": "not to\U000e0061\U000e0062day"}, "error")
        return
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen(
        [sys.executable, "-c", sleeper], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert child.stdout
    child.stdout.readline()  # it has learnt to ignore the signal
    say(number, {"content": [{"type": "text", "text": f"{os.getpid()} {child.pid}"}]})


def main(mode: str) -> None:
    """Serve, and stay when the input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.write("Server started!\n")
    for line in sys.stdin:
        request = json.loads(line)
        match request["method"]:
            case "initialize":
                info = {"name": "unruly", "version": "1"}
                version = request["params"]["protocolVersion"]
                say(request["id"], {"protocolVersion": version, "capabilities": {}, "serverInfo": info})
            case "tools/list":
                say(request["id"], {"tools": [TOOL]})
            case "tools/call":
                act(mode, request["id"])
            case _:
                pass
    if mode == "stubborn":
        time.sleep(600)


main(sys.argv[1])
