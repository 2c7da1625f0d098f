"""uvicorn's server with Muster's protocol: `python -m tests.benchmarks.relays.own_server PORT`."""

import sys
from typing import Any, cast

import uvicorn

from muster_proxy.protocol import HttpServer
from tests.benchmarks.relays.app import app


def main() -> None:
    """Serve until told to stop."""
    # uvicorn's type names its own protocols alone.
    protocol = cast("Any", HttpServer())
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http=protocol,
        loop="uvloop",
        ws="none",
        access_log=False,
        proxy_headers=False,
    )


if __name__ == "__main__":
    main()
