"""What is known of sessions: how much service each has had, where its prefix is warm, how long it is."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeAlias

from muster_batching.tickets import PoolId, SessionId, TenantId, Ticket, UpstreamId, Usage

HALF_LIFE_S = 60.0
"""Of attained service: what was had an hour ago is no reason to wait now."""

FORGOTTEN_AFTER_S = 600.0
"""A session that has been silent for so long is a new one when it returns: ten half-lives are a thousandth, and
its prefix has long been evicted from a busy engine."""

TURN_TOKENS = 32_768
"""What a session is served in one turn, its claim on its place: a few calls of a long session, the whole of a short
one. After it the session stands behind those that came meanwhile."""

MOST_SESSIONS = 100_000
"""Sessions remembered at once; beyond it the one that has been silent longest is forgotten."""

_AT_ONCE = 2  # forgotten for each that comes: so the table shrinks

SessionKey: TypeAlias = tuple[PoolId, TenantId, SessionId]


@dataclass(slots=True, eq=False)
class Session:
    """One conversation or agent run, on one pool.

    Attributes:
        key: Its pool, tenant and name.
        home: The upstream that its last call went to, and which therefore may hold its prefix.
        place: The upstream whose gate has admitted it last.
        context_tokens: Of its last call, prompt and answer: the prefix that its next call may find.
        claim_s: When its turn began: that of its first call, or when it had used up the turn before.
        calls: Those that wait or are in flight.
        touched_s: When its last call came or ended.
    """

    key: SessionKey
    home: UpstreamId | None = None
    place: UpstreamId | None = None
    context_tokens: int = 0
    claim_s: float = 0.0
    calls: int = 0
    touched_s: float = 0.0
    _attained: float = field(default=0.0)
    _attained_at_s: float = field(default=0.0)
    _turn_tokens: int = field(default=0)

    @property
    def is_continuing(self) -> bool:
        """Whether a call of it has been dispatched before."""
        return self.home is not None

    def attained_tokens(self, now_s: float) -> float:
        """The tokens served to it, each halved for every `HALF_LIFE_S` since."""
        if not self._attained:
            return 0.0
        return self._attained * 2.0 ** ((self._attained_at_s - now_s) / HALF_LIFE_S)

    def serve(self, usage: Usage, now_s: float) -> None:
        """Note what a call of it has used."""
        tokens = usage.input_tokens + usage.output_tokens
        self._attained = self.attained_tokens(now_s) + tokens
        self._attained_at_s = now_s
        self.context_tokens = tokens
        self._turn_tokens += tokens
        if self._turn_tokens >= TURN_TOKENS:
            self.claim_s, self._turn_tokens = now_s, 0


class Sessions:
    """The sessions heard of lately. Every method takes constant time, amortised."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()  # the longest silent first

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, ticket: Ticket, now_s: float) -> Session | None:
        """The session of a ticket that comes, touched; None where the ticket names none."""
        if ticket.session is None:
            return None
        key = (ticket.pool, ticket.tenant, ticket.session)
        session = self._sessions.pop(key, None)
        if session is None or (not session.calls and now_s - session.touched_s >= FORGOTTEN_AFTER_S):
            session = Session(key, claim_s=now_s)
        self._forget_silent(now_s)
        session.touched_s = now_s
        self._sessions[key] = session
        return session

    def _forget_silent(self, now_s: float) -> None:
        for _ in range(_AT_ONCE):
            silent = next(iter(self._sessions.values()), None)
            is_full = len(self._sessions) >= MOST_SESSIONS
            if silent is None or not (is_full or now_s - silent.touched_s >= FORGOTTEN_AFTER_S):
                return
            del self._sessions[silent.key]
            if silent.calls:  # it is not silent: a call of it lasts long
                silent.touched_s = now_s
                self._sessions[silent.key] = silent
