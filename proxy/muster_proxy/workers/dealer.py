"""Accepts connections and deals them out to the workers in turn."""

import asyncio
import socket
from collections import deque

from muster_observability import logs
from muster_proxy.workers.channel import Sender

# uvicorn's own. What comes when it is full is tried again by its client's system.
_BACKLOG = 2048

# A worker that is so many connections behind another does not take them as they come.
_BEHIND = 16

# When this machine has no descriptor left, some may be free after that.
_RETRY_S = 0.5

_log = logs.get("proxy")


class Dealer:
    """Deals connections out, each to the next worker in turn that has room for one under way.

    It accepts none while no worker has: they wait in the kernel, which bounds them.

    Args:
        listener: Bound. It listens from now on, so that the port is this pool's.
        wanted: Workers that must be ready before the first connection is dealt out: the first of them would have all.

    Attributes:
        opened: Set when they are.
    """

    def __init__(self, listener: socket.socket, wanted: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._wanted = wanted
        self._senders: deque[Sender] = deque()
        self._undealt: deque[socket.socket] = deque()
        self._is_closed = False
        self.opened = asyncio.Event()

    def add(self, sender: Sender) -> None:
        """Deal to this worker too, from when it is ready until its channel ends."""
        self._senders.append(sender)
        self._loop.add_reader(sender.fileno(), self._hear, sender)

    def remove(self, sender: Sender) -> None:
        """Deal what this worker has not taken to others; it has ended, or takes no more."""
        if sender in self._senders:
            self._senders.remove(sender)
            self._loop.remove_reader(sender.fileno())
            self._undealt.extend(sender.close())
            self._deal()

    def close(self) -> None:
        """Accept no more."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _hear(self, sender: Sender) -> None:
        sender.hear()
        if not sender.is_open:
            self.remove(sender)
        elif not self.opened.is_set() and sum(each.was_ready for each in self._senders) >= self._wanted:
            self.opened.set()
        self._deal()

    def _deal(self) -> None:
        """Deal out what there is, and hear of more if there is room for more."""
        while (sender := self._next()) is not None:
            connection = self._undealt.popleft() if self._undealt else self._accept()
            if connection is None:
                return
            if not sender.send(connection):
                self._undealt.append(connection)
            self._senders.remove(sender)
            self._senders.append(sender)
        if not self._is_closed:
            self._loop.remove_reader(self._listener)
        elif not self._senders:
            while self._undealt:
                self._undealt.popleft().close()

    def _next(self) -> Sender | None:
        """The next in turn that has room, less those that hang."""
        fewest = min((each.untaken for each in self._senders if each.has_room), default=0)
        most = fewest + _BEHIND
        return next((each for each in self._senders if each.has_room and each.untaken <= most), None)

    def _accept(self) -> socket.socket | None:
        """The next connection; None where there is none, and `_deal` is then called when one has come."""
        if self._is_closed or not self.opened.is_set():
            return None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._loop.add_reader(self._listener, self._deal)
            return None
        except OSError as error:
            _log.error("no connection can be accepted", error=error.strerror, retry_s=_RETRY_S)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_RETRY_S, self._deal)
            return None
        return connection
