"""Which requests are taken for those that kill engines, and for how long."""

from muster_batching import UpstreamId
from muster_proxy.quarantine import (
    MOST_CASES,
    MOST_FAILURES,
    NEAR_S,
    QUARANTINED_AFTER,
    REMEMBERED_S,
    SUSPECT_AFTER,
    Fingerprint,
    Quarantine,
    Verdict,
    fingerprint,
)

EAST, WEST = UpstreamId("east"), UpstreamId("west")
POISON, OTHER = Fingerprint(b"poison"), Fingerprint(b"other")


def killed(quarantine: Quarantine, times: int, *requests: Fingerprint, since_s: float = 0.0) -> float:
    """Let an engine die so often with these requests, a minute apart; when it died last."""
    now_s = since_s
    for _ in range(times):
        now_s += 60.0
        for request in requests:
            quarantine.failed(request, EAST, now_s)
        quarantine.died(EAST, now_s)
    return now_s


def test_three_deaths_are_one_too_many() -> None:
    """The first proves nothing, from the second on it is suspect; others are not concerned."""
    quarantine = Quarantine()
    verdicts = [quarantine.verdict(POISON, 0.0)]
    now_s = 0.0
    for _ in range(QUARANTINED_AFTER + 1):
        now_s = killed(quarantine, 1, POISON, since_s=now_s)
        verdicts.append(quarantine.verdict(POISON, now_s))

    free, suspect, bad = Verdict.FREE, Verdict.SUSPECT, Verdict.QUARANTINED
    assert verdicts == [free, free, suspect, bad, bad]
    assert quarantine.verdict(OTHER, now_s) is free


def test_one_that_is_answered_is_cleared_until_it_is_found_guilty() -> None:
    """An answer counts for a suspect. That of an upstream which bears the request does nothing for the others."""
    quarantine = Quarantine()
    now_s = killed(quarantine, SUSPECT_AFTER, POISON, OTHER)
    quarantine.answered(OTHER)
    assert quarantine.verdict(OTHER, now_s) is Verdict.FREE

    now_s = killed(quarantine, 1, POISON, since_s=now_s)
    quarantine.answered(POISON)
    assert quarantine.verdict(POISON, now_s) is Verdict.QUARANTINED


def test_a_failure_belongs_to_a_death_that_is_near() -> None:
    """Shortly before or after it, on the same upstream; once for each death."""
    quarantine = Quarantine()
    for died_s in (100.0, 200.0, 300.0):
        quarantine.failed(OTHER, EAST, died_s - NEAR_S - 1)
        quarantine.failed(POISON, EAST, died_s - NEAR_S)
        quarantine.failed(OTHER, WEST, died_s)
        quarantine.died(EAST, died_s)
        quarantine.failed(POISON, EAST, died_s + NEAR_S)
        quarantine.failed(OTHER, EAST, died_s + NEAR_S + 1)
        assert (quarantine.verdict(POISON, died_s) is Verdict.QUARANTINED) is (died_s == 300.0)

    assert quarantine.verdict(OTHER, 300.0) is Verdict.FREE


def test_an_engine_may_die_as_soon_as_it_is_back() -> None:
    """Each time counts, however quickly it is started again."""
    quarantine = Quarantine()
    for number in range(QUARANTINED_AFTER):
        quarantine.returned(EAST)
        quarantine.failed(POISON, EAST, number)
        quarantine.died(EAST, number)

    assert quarantine.verdict(POISON, QUARANTINED_AFTER) is Verdict.QUARANTINED


def test_failures_without_a_death_are_nothing() -> None:
    """A connection that something between breaks again and again kills no engine."""
    quarantine = Quarantine()
    for second in range(100):
        quarantine.failed(POISON, EAST, float(second))

    assert quarantine.is_empty
    assert quarantine.verdict(POISON, 100.0) is Verdict.FREE


def test_an_upstream_that_is_taken_out_has_not_died() -> None:
    """A replica that is scaled away may cut what it has in flight."""
    quarantine = Quarantine()
    for _ in range(QUARANTINED_AFTER):
        quarantine.failed(POISON, EAST, 1.0)
        quarantine.forget(EAST)
        quarantine.died(EAST, 1.0)
        quarantine.forget(EAST)
        quarantine.failed(POISON, EAST, 1.0)

    assert quarantine.verdict(POISON, 1.0) is Verdict.FREE


def test_it_is_forgotten_in_time() -> None:
    """An hour after the last death it is as any other."""
    quarantine = Quarantine()
    now_s = killed(quarantine, QUARANTINED_AFTER, POISON)
    assert quarantine.verdict(POISON, now_s + REMEMBERED_S) is Verdict.QUARANTINED
    assert quarantine.verdict(POISON, now_s + REMEMBERED_S + 1) is Verdict.FREE
    assert quarantine.is_empty


def test_it_is_bounded() -> None:
    """However many requests die with however many engines."""
    quarantine = Quarantine()
    requests = [Fingerprint(b"%d" % number) for number in range(MOST_CASES + 1)]
    now_s = 0.0
    for start in range(0, len(requests), MOST_FAILURES):
        now_s = killed(quarantine, SUSPECT_AFTER, *requests[start : start + MOST_FAILURES], since_s=now_s)

    assert quarantine.verdict(requests[0], now_s) is Verdict.FREE
    assert quarantine.verdict(requests[-1], now_s) is Verdict.SUSPECT

    crowd = [Fingerprint(b"late %d" % number) for number in range(MOST_FAILURES + 1)]
    now_s = killed(quarantine, SUSPECT_AFTER, *crowd, since_s=now_s)
    assert quarantine.verdict(crowd[0], now_s) is Verdict.FREE
    assert quarantine.verdict(crowd[1], now_s) is Verdict.SUSPECT


def test_a_fingerprint_is_of_the_route_and_the_body() -> None:
    """The same request has the same, another has another."""
    chat = fingerprint("/v1/chat/completions", b"{}")
    assert chat == fingerprint("/v1/chat/completions", b"{}")
    others = [
        fingerprint("/v1/chat/completions", b"{ }"),
        fingerprint("/v1/chat/completions/batch", b"{}"),
        fingerprint("/v1/completions", b"{}"),
    ]
    assert len({chat, *others}) == 4
