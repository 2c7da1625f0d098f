"""The original comparison on the embedded engine; `muster bench seed --help` tells its options.

.venv/bin/python tests/benchmarks/batch_performance.py [options of muster bench seed]
"""

import sys

from muster_proxy.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "seed"]
    main()
