"""Sessions: the service they have had, and how long they are remembered."""

import pytest

from muster_batching.sessions import (
    FORGOTTEN_AFTER_S,
    HALF_LIFE_S,
    MOST_SESSIONS,
    TURN_TOKENS,
    Session,
    Sessions,
)
from muster_batching.tickets import PoolId, SessionId, TenantId, Ticket, TicketId, UpstreamId, Usage


def ticket(session: str | None = "s", pool: str = "chat", tenant: str = "ann") -> Ticket:
    """Make a call of a session."""
    name = None if session is None else SessionId(session)
    return Ticket(TicketId("a"), PoolId(pool), 1, tenant=TenantId(tenant), session=name)


def called(sessions: Sessions, session: str, now_s: float) -> Session:
    """Let a call of a session come; return the session."""
    found = sessions.of(ticket(session), now_s)
    assert found is not None
    return found


def test_a_session_begins_with_nothing() -> None:
    """A session that has been served nothing has attained nothing, however old it is, and is not under way."""
    session = called(Sessions(), "s", 100.0)

    assert (session.attained_tokens(1e6), session.context_tokens, session.calls) == (0.0, 0, 0)
    assert not session.is_continuing
    session.home = UpstreamId("east")
    assert session.is_continuing


def test_service_halves_with_time() -> None:
    """What a session has had counts half after each half-life."""
    session = called(Sessions(), "s", 0.0)
    session.serve(Usage(700, 100), 10.0)
    ages_s = [0.0, HALF_LIFE_S, 2 * HALF_LIFE_S, 3.5 * HALF_LIFE_S]

    assert [session.attained_tokens(10.0 + age_s) for age_s in ages_s] == pytest.approx(
        [800, 400, 200, 800 / 2**3.5]
    )


def test_service_adds_up_as_it_has_decayed() -> None:
    """A call's tokens are added to what is left of those before; the context is that of the last call."""
    session = called(Sessions(), "s", 0.0)
    session.serve(Usage(700, 100), 0.0)
    session.serve(Usage(900, 60), HALF_LIFE_S)

    assert session.attained_tokens(HALF_LIFE_S) == 400 + 960
    assert session.attained_tokens(2 * HALF_LIFE_S) == 680
    assert session.context_tokens == 960


def test_a_claim_lasts_for_a_turn() -> None:
    """A session's claim is as old as the session, until it has had `TURN_TOKENS`; then it is a new one, and so on."""
    session = called(Sessions(), "s", 5.0)
    claims_s: list[float] = []
    for number in range(6):
        session.serve(Usage(TURN_TOKENS // 4, TURN_TOKENS // 4), 10.0 + number)
        claims_s.append(session.claim_s)

    assert claims_s == [5.0, 11.0, 11.0, 13.0, 13.0, 15.0]


def test_a_ticket_without_a_session_has_none() -> None:
    """A ticket that stands alone is not remembered."""
    sessions = Sessions()

    assert sessions.of(ticket(None), 0.0) is None
    assert len(sessions) == 0


def test_a_session_is_known_by_pool_tenant_and_name() -> None:
    """The same name of another tenant or pool is another session; a call touches its own."""
    sessions = Sessions()
    tickets = [ticket(), ticket(tenant="bob"), ticket(pool="code"), ticket("t")]
    found = [sessions.of(each, 1.0) for each in tickets]

    assert len({id(each) for each in found}) == len(sessions) == 4
    assert [sessions.of(each, 5.0) for each in tickets] == found
    assert [each and each.touched_s for each in found] == [5.0] * 4
    assert found[0] is not None
    assert found[0].key == ("chat", "ann", "s")


@pytest.mark.parametrize(
    ("silent_s", "is_new"), [(FORGOTTEN_AFTER_S - 0.1, False), (FORGOTTEN_AFTER_S, True)]
)
def test_a_session_that_is_silent_too_long_is_forgotten(silent_s: float, is_new: bool) -> None:
    """When it returns after that time it is a new one."""
    sessions = Sessions()
    first = called(sessions, "s", 0.0)

    assert (called(sessions, "s", silent_s) is not first) is is_new
    assert len(sessions) == 1


def test_the_silent_are_forgotten_when_others_come() -> None:
    """Each call that comes forgets up to two that have been silent too long, so the table shrinks."""
    sessions = Sessions()
    for number in range(10):
        called(sessions, f"old {number}", 0.0)
    sizes: list[int] = []
    for number in range(7):
        called(sessions, f"new {number}", FORGOTTEN_AFTER_S)
        sizes.append(len(sessions))

    assert sizes == [9, 8, 7, 6, 5, 6, 7]


def test_a_call_keeps_its_session() -> None:
    """A session with a call that waits or is in flight is remembered however long that takes."""
    sessions = Sessions()
    busy = called(sessions, "busy", 0.0)
    busy.calls = 1
    called(sessions, "idle", 0.0)
    for now_s in (FORGOTTEN_AFTER_S, 1.5 * FORGOTTEN_AFTER_S, 2.5 * FORGOTTEN_AFTER_S):
        called(sessions, "other", now_s)
        assert len(sessions) == 2

    busy.calls = 0
    assert called(sessions, "busy", 2.5 * FORGOTTEN_AFTER_S) is busy


def test_a_call_comes_in_time_to_keep_its_session() -> None:
    """Every call begins the time of silence anew."""
    sessions = Sessions()
    session = called(sessions, "s", 0.0)
    for turn in range(1, 5):
        called(sessions, "other", 0.8 * FORGOTTEN_AFTER_S * turn - 1.0)

        assert called(sessions, "s", 0.8 * FORGOTTEN_AFTER_S * turn) is session


def test_there_are_never_more_than_may_be_remembered() -> None:
    """Beyond `MOST_SESSIONS` the one that came longest ago goes, but never one with a call in flight."""
    sessions = Sessions()
    busy = called(sessions, "0", 0.0)
    busy.calls = 1
    idle = called(sessions, "1", 0.0)
    for number in range(2, MOST_SESSIONS):
        called(sessions, str(number), 1.0)
    assert len(sessions) == MOST_SESSIONS
    called(sessions, "one more", 2.0)

    assert len(sessions) == MOST_SESSIONS
    assert called(sessions, "0", 2.0) is busy
    assert called(sessions, "1", 2.0) is not idle
    assert len(sessions) <= MOST_SESSIONS
