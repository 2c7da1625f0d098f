"""`python -m muster_proxy.workers` is one worker; the pool starts it with its channel as standard input."""

import sys

from muster_proxy.workers.worker import run_worker

if __name__ == "__main__":
    sys.exit(run_worker())
