"""Feed one of the proxy's readers with bytes that a fuzzer makes up, for as long as it may take.

    pip install atheris
    python -m tests.fuzz {head,body,events} [--minutes 5] [--corpus DIR]

`head`: requests as they come on a connection, cut anywhere. `body`: the JSON of every route. `events`: an engine's
stream, cut anywhere. The fuzzer keeps what reaches new code, and stops at the first input that breaks a promise; that
input is then in a file `crash-...` of the present directory.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz import targets


def main() -> None:
    """Run the command line; returns only if atheris is missing, as the fuzzer ends the process itself."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("target", choices=sorted(targets.TARGETS), help="the reader to feed")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (%(default)s)")
    parser.add_argument("--corpus", type=Path, help="keep what was found here, and begin with it")
    options = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is missing: pip install atheris")
    with atheris.instrument_imports(include=["muster_proxy"]):
        target = targets.TARGETS[options.target]()
    with tempfile.TemporaryDirectory() as directory:
        for number, seed in enumerate(targets.SEEDS[options.target]):
            (Path(directory) / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={round(options.minutes * 60)}", "-max_len=4096", "-timeout=10"]
        places = [str(options.corpus), directory] if options.corpus else [directory]
        atheris.Setup([sys.argv[0], *limits, *places], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
