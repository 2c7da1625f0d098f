"""A modelled engine as a process: `python -m muster_proxy.testing --profile h200-8b --port 8300`."""

import argparse
import sys

from muster_batching.testing import PROFILES
from muster_observability import logs, server
from muster_proxy.testing import FakeVllm


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m muster_proxy.testing", description=__doc__)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="h200-8b", help="the engine to be")
    parser.add_argument("--port", type=int, default=8300, help="where it listens, on 127.0.0.1")
    parser.add_argument("--model", default="fake-model", help="the model's name")
    parser.add_argument("--speed", type=float, default=1.0, help="times faster than that engine")
    return parser.parse_args()


def main() -> server.ExitCode:
    """Serve until SIGINT or SIGTERM."""
    given = _arguments()
    logs.configure()
    try:
        engine = FakeVllm(given.model, given.port, profile=PROFILES[given.profile], speed=given.speed)
    except server.PortTakenError as error:
        return server.refuse(error, server.ExitCode.UNAVAILABLE)
    return engine.serve()


if __name__ == "__main__":
    sys.exit(main())
