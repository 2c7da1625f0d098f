"""Several processes that serve one port, for a proxy that needs more than one core.

    clients -> pool (parent) -> worker 0..N-1, each the whole application with a scheduler of its own

The parent alone listens. It accepts connections and deals them out in turn, as open descriptors over a pair of Unix
sockets; nothing of what a client sends passes through it. Clients of an API keep their connections for long, so a
connection that has come to a crowded worker stays there, and since the limits are divided among the workers, the slots
of the others would be idle meanwhile. Of 32 connections to 4 workers, each of the ways to share a port gave:

    one listener inherited by all     3, 10, 1, 18 apart and 0, 0, 32, 0 in a burst: who is awake takes all
    `SO_REUSEPORT` listeners          7, 15, 3, 7: by a hash, whatever a worker does; macOS deals nothing out,
                                      and what waits in the queue of a worker that dies is reset
    dealt out by the parent           8, 8, 8, 8; a worker that dies has not yet got what it has not taken

It costs a connection, not a request, some tens of microseconds in the parent.
"""

from muster_proxy.workers.pool import run_workers
from muster_proxy.workers.shares import shares

__all__ = ["run_workers", "shares"]
