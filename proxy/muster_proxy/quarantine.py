"""Requests that kill engines are found, and no longer sent; without IO, as `health` is.

An engine that dies takes along whatever it was computing, and most clients send that again: so after a second death the
request that did it is in the company of many that did nothing. From two deaths on a request is a *suspect*, and
suspects are to be sent one at a time: the one with which an engine dies for the third time was alone, and is
*quarantined*. One that is answered is cleared.

A death is that an upstream which could be reached no longer can. With it went those whose connection broke, or whose
answer was an error of the engine's, shortly before or after.
"""

import hashlib
from collections import OrderedDict, deque
from enum import Enum, auto
from typing import NewType

from muster_batching import UpstreamId

Fingerprint = NewType("Fingerprint", bytes)
"""Of a request: the same for the same route and body, whoever sends it."""

SUSPECT_AFTER = 2
"""Deaths. After one alone all that was in flight would be sent one by one, and a death may have many causes."""

QUARANTINED_AFTER = 3

NEAR_S = 10.0
"""A failure belongs to a death this near: connections break at once, and an unreachable host is found by its probe."""

REMEMBERED_S = 3600.0
"""Since the last death with it. An engine may take minutes to load its model, and so an hour to die three times."""

MOST_CASES = 10_000
MOST_FAILURES = 1_000
"""Of each upstream, among which those that died with it are looked for: more than are ever in flight on one."""


class Verdict(Enum):
    """How a request is to be treated."""

    FREE = auto()
    SUSPECT = auto()
    QUARANTINED = auto()


def fingerprint(path: str, body: bytes) -> Fingerprint:
    """The fingerprint of a request by its route and the client's body."""
    return Fingerprint(hashlib.blake2b(body, digest_size=16, person=path.encode()[-16:]).digest())


class Quarantine:
    """Remembers with which requests engines have died."""

    def __init__(self) -> None:
        self._failures: dict[UpstreamId, deque[tuple[float, Fingerprint]]] = {}
        self._died_s: dict[UpstreamId, float] = {}
        # The deaths of each, by upstream and time; the one that has been in none for longest is first.
        self._cases: OrderedDict[Fingerprint, set[tuple[UpstreamId, float]]] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        """Whether there is nobody to be wary of."""
        return not self._cases

    def verdict(self, request: Fingerprint, now_s: float) -> Verdict:
        """How a request is to be treated now."""
        deaths = self._cases.get(request, ())
        if deaths and now_s - max(died_s for _, died_s in deaths) > REMEMBERED_S:
            del self._cases[request]
            return Verdict.FREE
        if len(deaths) >= QUARANTINED_AFTER:
            return Verdict.QUARANTINED
        return Verdict.SUSPECT if len(deaths) >= SUSPECT_AFTER else Verdict.FREE

    def failed(self, request: Fingerprint, upstream: UpstreamId, now_s: float) -> None:
        """Hear that an engine failed a request: it was lost with it, or answered with an error."""
        died_s = self._died_s.get(upstream)
        if died_s is not None and now_s - died_s <= NEAR_S:
            self._charge(request, upstream, died_s)
        else:
            self._failures.setdefault(upstream, deque(maxlen=MOST_FAILURES)).append((now_s, request))

    def died(self, upstream: UpstreamId, now_s: float) -> None:
        """Hear that an upstream can no longer be reached."""
        self._died_s[upstream] = now_s
        for failed_s, request in self._failures.pop(upstream, ()):
            if now_s - failed_s <= NEAR_S:
                self._charge(request, upstream, now_s)

    def returned(self, upstream: UpstreamId) -> None:
        """Hear that an upstream can be reached again: what fails from now on does not belong to its last death."""
        self._died_s.pop(upstream, None)

    def answered(self, request: Fingerprint) -> None:
        """Hear that an engine has answered a request: it is not what kills."""
        if len(self._cases.get(request, ())) < QUARANTINED_AFTER:
            self._cases.pop(request, None)

    def forget(self, upstream: UpstreamId) -> None:
        """Hear that an upstream was taken out of service, which is no death."""
        self._failures.pop(upstream, None)
        self.returned(upstream)

    def _charge(self, request: Fingerprint, upstream: UpstreamId, died_s: float) -> None:
        deaths = self._cases.setdefault(request, set())
        if len(deaths) < QUARANTINED_AFTER:
            deaths.add((upstream, died_s))
        self._cases.move_to_end(request)
        if len(self._cases) > MOST_CASES:
            self._cases.popitem(last=False)
