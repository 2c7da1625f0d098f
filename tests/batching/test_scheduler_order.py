"""Timelines of classes, tenants, deadlines and room that is kept: the whole history of what is decided."""

from dataclasses import replace
from typing import Any

import pytest

from muster_batching import (
    AimdLimit,
    ClassRule,
    Dispatch,
    End,
    EngineQueueLimit,
    EngineSample,
    FixedLimit,
    Outcome,
    Policy,
    PoolId,
    RequestClass,
    Scheduler,
    TenantId,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
    UpstreamReport,
    Usage,
    WaitingLimits,
    WaitReason,
)
from muster_batching.accounts import PRESENCE_S
from muster_batching.limits import LimitPolicy
from muster_batching.testing import Timeline

CHAT, CODE = PoolId("chat"), PoolId("code")
EAST, WEST = UpstreamId("east"), UpstreamId("west")
INTERACTIVE, STANDARD, BATCH = RequestClass


def start(limit: int = 1, **policy: Any) -> Timeline:
    """Begin a timeline with one upstream, of so many slots."""
    timeline = Timeline(Scheduler(Policy(**policy)))
    timeline.report(EAST, UpstreamReport(FixedLimit(limit), frozenset({CHAT}), available=True))
    return timeline


def ticket(name: str, request_class: RequestClass = STANDARD, tenant: str = "", **fields: Any) -> Ticket:
    """Make a ticket for the pool that all share."""
    return Ticket(TicketId(name), fields.pop("pool", CHAT), 1, request_class, TenantId(tenant), **fields)


def run_dry(timeline: Timeline, *, seconds: float = 1.0, usage: Usage | None = None) -> list[str]:
    """End one answer after another, each after so many seconds; return the order in which all were sent."""
    running = [action.ticket_id for _, action in timeline.log if isinstance(action, Dispatch)]
    for ticket_id in running:
        timeline.advance(seconds)
        before = len(timeline.log)
        timeline.finish(ticket_id, Outcome.COMPLETED, usage)
        running += [each.ticket_id for _, each in timeline.log[before:] if isinstance(each, Dispatch)]
    return [str(name) for name in running]


def test_the_most_urgent_class_goes_first() -> None:
    """Classes are strict while nobody has aged, whatever the order of arrival."""
    timeline = start()
    timeline.submit(ticket("first"))
    timeline.submit(ticket("line", BATCH))
    timeline.submit(ticket("call"))
    timeline.submit(ticket("person", INTERACTIVE))

    assert run_dry(timeline) == ["first", "person", "call", "line"]


def test_an_aged_class_gets_its_share_and_no_more() -> None:
    """A batch line that has waited long goes ahead of people, but only one of ten slots is the batch's."""
    rules = {STANDARD: ClassRule(10.0, 0.25), BATCH: ClassRule(30.0, 0.1)}
    timeline = start(limit=10, rules=rules)
    for number in range(10):
        timeline.submit(ticket(f"running-{number}", INTERACTIVE))
    for number in range(3):
        timeline.submit(ticket(f"line-{number}", BATCH))
    timeline.advance(29.0)
    for number in range(3):
        timeline.submit(ticket(f"person-{number}", INTERACTIVE))
    timeline.finish(TicketId("running-0"), Outcome.COMPLETED)
    timeline.advance(1.0)
    timeline.finish(TicketId("running-1"), Outcome.COMPLETED)
    timeline.finish(TicketId("running-2"), Outcome.COMPLETED)

    assert timeline.log[10:] == [
        (29.0, Dispatch(TicketId("person-0"), EAST)),
        (30.0, Dispatch(TicketId("line-0"), EAST)),
        (30.0, Dispatch(TicketId("person-1"), EAST)),
    ]


def test_tenants_take_turns_by_what_they_have_used() -> None:
    """A tenant with many tickets does not hold up one with a few; each goes when it has had the least."""
    timeline = start()
    for number in range(4):
        timeline.submit(ticket(f"flood-{number}", tenant="flooder", input_tokens=100))
    timeline.submit(ticket("polite-0", tenant="polite", input_tokens=100))
    timeline.submit(ticket("polite-1", tenant="polite", input_tokens=100))

    order = run_dry(timeline, usage=Usage(100, 50))

    assert order == ["flood-0", "polite-0", "flood-1", "polite-1", "flood-2", "flood-3"]


def test_a_tenant_of_twice_the_weight_gets_twice_the_turns() -> None:
    """Service is divided by weight: of nine turns of equal cost six are the heavier tenant's."""
    timeline = start()
    for number in range(12):
        for tenant, weight in (("light", 1.0), ("heavy", 2.0)):
            name = f"{tenant}-{number}"
            timeline.submit(ticket(name, tenant=tenant, weight=weight, input_tokens=100, max_output_tokens=1))

    order = run_dry(timeline, usage=Usage(100, 1))[3:12]

    assert sum(name.startswith("heavy") for name in order) == 6


def test_a_runaway_answer_is_charged_as_it_comes() -> None:
    """Tokens beyond what was expected count before the answer's end: the next turn is another's."""
    timeline = start(limit=2)
    for number in range(2):
        for tenant in ("a", "b"):
            name = f"{tenant}-{number}"
            timeline.submit(ticket(name, tenant=tenant, input_tokens=100, max_output_tokens=10))
    timeline.progress(TicketId("a-0"), 5000)
    timeline.progress(TicketId("a-0"), 5001)
    timeline.finish(TicketId("b-0"), Outcome.COMPLETED, Usage(100, 10))

    assert timeline.log[2:] == [(0.0, Dispatch(TicketId("b-1"), EAST))]


@pytest.mark.parametrize("busier", [CHAT, CODE])
def test_one_pool_has_one_order_with_those_it_shares_an_engine_with(busier: PoolId) -> None:
    """Pools on one engine share its tenants' accounts, also from before they met."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(FixedLimit(1), frozenset({CHAT}), available=True))
    timeline.report(WEST, UpstreamReport(FixedLimit(1), frozenset({CODE}), available=True))
    for number in range(5):
        timeline.submit(ticket(f"chat-{number}", tenant="flooder", input_tokens=1000))
        timeline.submit(ticket(f"code-{number}", tenant="flooder", input_tokens=1000, pool=CODE))
    timeline.finish(TicketId(f"{busier}-0"), Outcome.COMPLETED, Usage(1000, 256))
    before = len(timeline.log)
    timeline.report(EAST, UpstreamReport(FixedLimit(1), frozenset({CHAT, CODE}), available=True))
    timeline.submit(ticket("polite-0", tenant="polite", input_tokens=1000, pool=CODE))
    timeline.finish(TicketId("chat-1" if busier is CHAT else "chat-0"), Outcome.COMPLETED, Usage(1000, 256))

    assert timeline.log[before:] == [(0.0, Dispatch(TicketId("polite-0"), EAST))]


def test_a_slot_of_two_pools_goes_to_the_more_urgent() -> None:
    """Of the pools that an upstream serves the one with the most urgent ticket gets the slot."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(FixedLimit(1), frozenset({CHAT, CODE}), available=True))
    timeline.submit(ticket("running"))
    timeline.submit(ticket("call"))
    timeline.submit(ticket("person", INTERACTIVE, pool=CODE))

    assert run_dry(timeline) == ["running", "person", "call"]


def test_room_is_kept_for_people_while_they_are_present() -> None:
    """Batch lines leave a twenty-fifth of the engine free for ten seconds after a person's last request."""
    timeline = start(limit=50)
    timeline.submit(ticket("person-0", INTERACTIVE))
    timeline.finish(TicketId("person-0"), Outcome.COMPLETED)
    for number in range(60):
        timeline.submit(ticket(f"line-{number}", BATCH))
    assert timeline.scheduler.in_flight == 48
    assert timeline.scheduler.waits_for(TicketId("line-48")) is WaitReason.HEADROOM
    timeline.submit(ticket("person-1", INTERACTIVE))
    assert timeline.log[-1] == (0.0, Dispatch(TicketId("person-1"), EAST))
    timeline.finish(TicketId("person-1"), Outcome.COMPLETED)
    timeline.advance(10.0)
    timeline.finish(TicketId("line-0"), Outcome.COMPLETED)

    assert timeline.scheduler.in_flight == 50
    assert timeline.scheduler.waits_for(TicketId("line-55")) is WaitReason.AT_LIMIT
    assert timeline.scheduler.waits_for(TicketId("line-0")) is None


def test_room_is_kept_for_tenants_below_their_share() -> None:
    """A flooder leaves room while another tenant is present, who takes it at once; the flooder does not."""
    timeline = start(limit=50)
    timeline.submit(ticket("polite-0", tenant="polite"))
    timeline.finish(TicketId("polite-0"), Outcome.COMPLETED)
    for number in range(60):
        timeline.submit(ticket(f"flood-{number}", tenant="flooder"))
    assert timeline.scheduler.in_flight == 48
    for number in (1, 2, 3):
        timeline.submit(ticket(f"polite-{number}", tenant="polite"))
    assert timeline.scheduler.in_flight == 50
    timeline.finish(TicketId("flood-0"), Outcome.COMPLETED)

    assert [action.ticket_id for _, action in timeline.log[-3:]] == ["polite-1", "polite-2", "polite-3"]


def test_prompts_wait_here_and_not_in_the_engine() -> None:
    """While so many prompt tokens are to be computed there as a step takes, no more are sent; then the next."""
    timeline = start(limit=8)
    for name in "abc":
        timeline.submit(ticket(name, input_tokens=5000, is_stream=True))
    assert timeline.scheduler.in_flight == 2
    assert timeline.scheduler.waits_for(TicketId("c")) is WaitReason.PROMPTS
    timeline.advance(0.5)
    timeline.progress(TicketId("a"), 1)

    assert timeline.log == [
        (0.0, Dispatch(TicketId("a"), EAST)),
        (0.0, Dispatch(TicketId("b"), EAST)),
        (0.5, Dispatch(TicketId("c"), EAST)),
    ]


def test_the_end_of_a_request_that_never_began_frees_its_prompt() -> None:
    """A prompt counts as computed when its request ends, whether or not a token came."""
    timeline = start(limit=8)
    for name in "abc":
        timeline.submit(ticket(name, input_tokens=5000, is_stream=True))
    timeline.progress(TicketId("a"), 1)
    timeline.submit(ticket("d", input_tokens=5000, is_stream=True))
    timeline.cancel(TicketId("b"))
    timeline.finish(TicketId("a"), Outcome.COMPLETED)

    assert [action.ticket_id for _, action in timeline.log] == ["a", "b", "c", "d"]


def flooded(limit: LimitPolicy, *, is_stream: bool = True) -> Timeline:
    """Begin a timeline with an upstream whose engine is sent 100 short prompts at once."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(limit, frozenset({CHAT}), available=True))
    for number in range(100):
        timeline.submit(ticket(f"{number}", input_tokens=1, is_stream=is_stream))
    return timeline


def begin_all(timeline: Timeline) -> int:
    """Let all that are in the engine begin their answers; return how many are in it then."""
    for _, action in list(timeline.log):
        timeline.progress(action.ticket_id, 1)
    return timeline.scheduler.in_flight


@pytest.mark.parametrize("limit", [AimdLimit(), EngineQueueLimit(initial=64)])
def test_an_unknown_engine_is_given_twice_of_what_it_has_begun(limit: LimitPolicy) -> None:
    """It starts with few prompts, and gets as many more as show that they run, up to its slots."""
    timeline = flooded(limit)
    in_flight = [timeline.scheduler.in_flight, begin_all(timeline), begin_all(timeline), begin_all(timeline)]

    assert timeline.scheduler.waits_for(TicketId("99")) is WaitReason.AT_LIMIT
    assert in_flight == [16, 32, 64, 64]


def test_an_answer_begins_once() -> None:
    """Its later tokens do not count as other answers that have begun."""
    timeline = flooded(AimdLimit())
    for tokens in range(1, 50):
        timeline.progress(TicketId("0"), tokens)

    assert timeline.scheduler.in_flight == 17


@pytest.mark.parametrize(
    ("limit", "is_stream"), [(FixedLimit(64), True), (AimdLimit(), False), (EngineQueueLimit(64), False)]
)
def test_what_is_known_or_tells_nothing_is_sent_at_once(limit: LimitPolicy, *, is_stream: bool) -> None:
    """A configured limit needs no trial, and answers that are no streams cannot show that they have begun."""
    assert flooded(limit, is_stream=is_stream).scheduler.in_flight == 64


def test_an_engine_whose_capacity_is_learned_is_filled_at_once() -> None:
    """Then it is known how many prompts find a place in its batch, and none need be begun for the next to go."""
    timeline = flooded(EngineQueueLimit())
    begin_all(timeline)
    for number in range(3):
        timeline.sample(EAST, EngineSample(running=16, waiting=16 - number))
        timeline.finish(TicketId(f"{number}"), Outcome.COMPLETED)
    for number in range(3, 32):
        timeline.finish(TicketId(f"{number}"), Outcome.COMPLETED)

    assert timeline.scheduler.in_flight == timeline.scheduler.slots_on(EAST) == 18


def test_waiting_for_prompts_shows_no_need_of_more_slots() -> None:
    """A limit is not raised by answers while those who wait do not wait for its slots."""
    timeline = flooded(AimdLimit(initial=17))
    for number in range(40):
        timeline.finish(TicketId(f"{number}"), Outcome.COMPLETED)

    assert timeline.scheduler.waits_for(TicketId("99")) is WaitReason.PROMPTS
    assert timeline.scheduler.slots_on(EAST) == 17


def test_tokens_of_a_request_that_has_ended_are_ignored() -> None:
    """A client's leaving may cross its tokens."""
    timeline = start()
    timeline.submit(ticket("a"))
    timeline.cancel(TicketId("a"))
    timeline.progress(TicketId("a"), 3)

    assert timeline.scheduler.ends[Outcome.CANCELLED] == 1


def departing(timeline: Timeline, count: int, every_s: float) -> None:
    """Let so many tickets wait, and get their turn one after another, as often as that."""
    for number in range(count + 1):
        timeline.submit(ticket(f"before-{number}", INTERACTIVE))
    for number in range(count):
        timeline.advance(every_s)
        timeline.finish(TicketId(f"before-{number}"), Outcome.COMPLETED)


def test_a_wait_beyond_the_deadline_is_refused_on_arrival() -> None:
    """With two seconds between departures, five before it and a margin, a tenth second cannot be met."""
    timeline = start()
    departing(timeline, 10, 2.0)
    for number in range(4):
        timeline.submit(ticket(f"waiting-{number}", INTERACTIVE))
    now_s = timeline.clock()
    timeline.submit(ticket("late", INTERACTIVE, deadline_s=now_s + 10.0))
    timeline.submit(ticket("in time", INTERACTIVE, deadline_s=now_s + 14.0))

    assert timeline.log[-1] == (now_s, TurnAway(TicketId("late"), TurnAwayReason.DEADLINE, 10))
    assert timeline.scheduler.waits_for(TicketId("in time")) is WaitReason.AT_LIMIT


def test_a_wait_beyond_what_the_class_may_wait_is_refused_on_arrival() -> None:
    """Nobody is let wait for minutes who is sure to be turned away then."""
    limits = WaitingLimits(max_wait_s=20.0)
    timeline = start(waiting=dict.fromkeys(RequestClass, limits))
    departing(timeline, 8, 2.0)
    now_s = timeline.clock()
    for number in range(9):
        timeline.submit(ticket(f"waiting-{number}", INTERACTIVE))

    assert timeline.log[-1] == (now_s, TurnAway(TicketId("waiting-8"), TurnAwayReason.WAITED_TOO_LONG, 18))
    assert timeline.scheduler.waiting == 8


def test_the_time_to_first_token_counts_against_a_deadline() -> None:
    """A turn just before the deadline is too late when a first token takes three seconds."""
    timeline = start()
    timeline.submit(ticket("running", INTERACTIVE))
    timeline.submit(ticket("next", INTERACTIVE))
    timeline.advance(3.0)
    timeline.progress(TicketId("running"), 1)
    timeline.finish(TicketId("running"), Outcome.COMPLETED)
    timeline.submit(ticket("late", INTERACTIVE, deadline_s=9.0))
    timeline.submit(ticket("in time", INTERACTIVE, deadline_s=11.0))

    assert timeline.log[-1] == (3.0, TurnAway(TicketId("late"), TurnAwayReason.DEADLINE, 3))
    timeline.advance(4.9)
    timeline.advance(0.2)
    assert timeline.log[-1] == (8.0, TurnAway(TicketId("in time"), TurnAwayReason.DEADLINE, 9))


def test_the_time_to_first_token_is_counted_from_the_dispatch() -> None:
    """With first tokens 1 s after dispatches at 100 s, a ticket may wait until 1 s before its deadline."""
    timeline = start()
    timeline.advance(100.0)
    timeline.submit(ticket("running", INTERACTIVE))
    timeline.advance(1.0)
    timeline.progress(TicketId("running"), 1)
    timeline.submit(ticket("next", INTERACTIVE, deadline_s=110.0))
    timeline.advance(20.0)

    assert timeline.log[-1] == (109.0, TurnAway(TicketId("next"), TurnAwayReason.DEADLINE, 5))


def test_an_aged_class_takes_a_slot_that_is_kept_for_others() -> None:
    """What has aged is no filling: with people waiting for every slot, a line still gets its turn."""
    timeline = start(limit=50)
    for number in range(51):
        timeline.submit(ticket(f"person-{number}", INTERACTIVE))
    timeline.submit(ticket("line", BATCH))
    timeline.advance(25.0)
    timeline.submit(ticket("person-51", INTERACTIVE))
    timeline.advance(5.0)
    timeline.finish(TicketId("person-0"), Outcome.COMPLETED)

    assert timeline.log[-1] == (30.0, Dispatch(TicketId("line"), EAST))


def test_the_most_urgent_class_does_not_fill_for_one_tenant_either() -> None:
    """Among people too a tenant above its share leaves room for one that is present and below."""
    timeline = start(limit=50)
    timeline.submit(ticket("polite", INTERACTIVE, tenant="polite"))
    timeline.finish(TicketId("polite"), Outcome.COMPLETED)
    for number in range(60):
        timeline.submit(ticket(f"flood-{number}", INTERACTIVE, tenant="flooder"))
    timeline.finish(TicketId("flood-0"), Outcome.COMPLETED)

    assert timeline.scheduler.in_flight == 48


def test_one_turnover_may_wait_before_a_departure_has_been_seen() -> None:
    """While nothing is known of the pace, as many with a deadline may wait as are in flight."""
    timeline = start(limit=2)
    for name in "abcde":
        timeline.submit(ticket(name, deadline_s=60.0))

    assert timeline.log[2:] == [(0.0, TurnAway(TicketId("e"), TurnAwayReason.DEADLINE, 5))]
    assert timeline.scheduler.waiting == 2


def test_a_tenant_with_nothing_waiting_is_not_foreseen_behind_a_flood() -> None:
    """Tenants take turns, so a newcomer waits for its turn and not for all who came before."""
    timeline = start()
    departing(timeline, 10, 2.0)
    for number in range(50):
        timeline.submit(ticket(f"flood-{number}", INTERACTIVE, tenant="flooder"))
    deadline_s = timeline.clock() + 8.0
    timeline.submit(ticket("own", INTERACTIVE, tenant="polite", deadline_s=deadline_s))
    timeline.submit(ticket("another", INTERACTIVE, tenant="flooder", deadline_s=deadline_s))

    assert timeline.scheduler.waits_for(TicketId("own")) is not None
    assert timeline.scheduler.waits_for(TicketId("another")) is None


def test_a_ticket_is_not_sent_after_its_deadline() -> None:
    """One that waits is turned away when its deadline has come, not sent to an engine in vain."""
    timeline = start()
    timeline.submit(ticket("running"))
    timeline.submit(ticket("hurried", deadline_s=4.0))
    timeline.submit(ticket("patient"))
    timeline.advance(5.0)
    timeline.finish(TicketId("running"), Outcome.COMPLETED)

    assert timeline.log[1:] == [
        (4.0, TurnAway(TicketId("hurried"), TurnAwayReason.DEADLINE, 5)),
        (5.0, Dispatch(TicketId("patient"), EAST)),
    ]


def test_each_class_has_its_own_room_to_wait() -> None:
    """A class whose waiting room is full keeps no other class out."""
    small = WaitingLimits(max_waiting=1)
    timeline = start(waiting={INTERACTIVE: small, STANDARD: small, BATCH: small})
    timeline.submit(ticket("running"))
    for number in range(2):
        timeline.submit(ticket(f"call-{number}"))
        timeline.submit(ticket(f"line-{number}", BATCH))

    assert [action.ticket_id for _, action in timeline.log[1:]] == ["call-1", "line-1"]
    assert timeline.scheduler.waiting_of(BATCH) == 1


def test_push_back_lowers_a_probed_limit() -> None:
    """An engine that answers 429 is given less at once, and what waits stays here."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(AimdLimit(initial=10, least=1), frozenset({CHAT}), available=True))
    for number in range(12):
        timeline.submit(ticket(str(number)))
    timeline.end(TicketId("0"), End(Outcome.FAILED, is_push_back=True))

    assert timeline.scheduler.slots_on(EAST) == 7
    assert (timeline.scheduler.in_flight, timeline.scheduler.waiting) == (9, 2)


def test_a_limit_is_kept_by_a_report_with_an_equal_one() -> None:
    """A probe that finds an upstream as it was does not make the scheduler forget what it has learned."""
    timeline = Timeline(Scheduler())
    report = UpstreamReport(AimdLimit(initial=10, least=1), frozenset({CHAT}), available=True)
    timeline.report(EAST, report)
    timeline.submit(ticket("a"))
    timeline.end(TicketId("a"), End(Outcome.FAILED, is_push_back=True))
    timeline.report(EAST, report)
    assert timeline.scheduler.slots_on(EAST) == 1
    timeline.report(EAST, replace(report, limit=FixedLimit(3)))

    assert timeline.scheduler.slots_on(EAST) == 3


def test_metrics_of_an_engine_move_what_waits_into_the_scheduler() -> None:
    """When the engine queues, its limit falls to what it runs and a margin, and newcomers wait here."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(EngineQueueLimit(), frozenset({CHAT}), available=True))
    for number in range(40):
        timeline.submit(ticket(str(number)))
    for number in range(4):
        timeline.advance(0.25)
        timeline.sample(EAST, EngineSample(running=16, waiting=24 - number))
        timeline.finish(TicketId(str(number)), Outcome.COMPLETED)
    timeline.submit(ticket("newcomer"))

    assert timeline.scheduler.slots_on(EAST) == 18
    assert timeline.scheduler.waits_for(TicketId("newcomer")) is WaitReason.AT_LIMIT


def test_samples_before_which_nothing_has_moved_tell_nothing() -> None:
    """However often an engine says the same in a step that takes long, its limit stays."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(EngineQueueLimit(), frozenset({CHAT}), available=True))
    for number in range(40):
        timeline.submit(ticket(str(number)))
    for _ in range(10):
        timeline.advance(0.25)
        timeline.sample(EAST, EngineSample(running=16, waiting=24))

    assert timeline.scheduler.slots_on(EAST) == 256


@pytest.mark.parametrize(("lines", "person"), [(CHAT, CODE), (CODE, CHAT)])
def test_a_pool_whose_tickets_may_not_go_does_not_hold_up_another(lines: PoolId, person: PoolId) -> None:
    """Room that is kept from one pool's lines on a shared engine goes to the other pool's people."""
    timeline = Timeline(Scheduler())
    timeline.report(EAST, UpstreamReport(FixedLimit(26), frozenset({CHAT, CODE}), available=True))
    for number in range(26):
        timeline.submit(ticket(f"person-{number}", INTERACTIVE, pool=person))
    timeline.submit(ticket("line", BATCH, pool=lines))
    timeline.submit(ticket("next", INTERACTIVE, pool=person))
    timeline.finish(TicketId("person-0"), Outcome.COMPLETED)

    assert timeline.log[-1] == (0.0, Dispatch(TicketId("next"), EAST))


@pytest.mark.parametrize(("deadline_s", "waits"), [(11.9, False), (12.1, True)])
def test_without_a_known_time_to_first_token_the_turn_counts(deadline_s: float, *, waits: bool) -> None:
    """Five departures of two seconds and a margin of a fifth are twelve seconds, and nothing is added to them."""
    timeline = start()
    departing(timeline, 10, 2.0)
    for number in range(4):
        timeline.submit(ticket(f"waiting-{number}", INTERACTIVE))
    timeline.submit(ticket("one more", INTERACTIVE, deadline_s=timeline.clock() + deadline_s))

    assert (timeline.scheduler.waits_for(TicketId("one more")) is not None) is waits


def test_a_sample_of_an_unknown_upstream_is_ignored() -> None:
    """A scrape may cross the removal of its upstream."""
    timeline = start()
    timeline.sample(WEST, EngineSample(1, 1))

    assert timeline.log == []
    assert timeline.scheduler.slots_on(WEST) == 0


@pytest.mark.parametrize("first", [EAST, WEST])
def test_a_newcomer_that_lets_another_go_first_still_gets_its_slot(first: UpstreamId) -> None:
    """With room on two upstreams, both who wait go: presence has ended, but nothing had happened since."""
    timeline = Timeline(Scheduler())
    for upstream in (first, {EAST: WEST, WEST: EAST}[first]):
        timeline.report(upstream, UpstreamReport(FixedLimit(26), frozenset({CHAT}), available=True))
    timeline.submit(ticket("person", INTERACTIVE))
    timeline.finish(TicketId("person"), Outcome.COMPLETED)
    for number in range(51):
        timeline.submit(ticket(f"line-{number}", BATCH))
    assert (timeline.scheduler.in_flight, timeline.scheduler.waiting) == (50, 1)
    timeline.scheduler.submit(ticket("line-51", BATCH), now_s=10.0)  # before a wake that is late

    assert (timeline.scheduler.in_flight, timeline.scheduler.waiting) == (52, 0)


def test_room_is_given_up_when_those_it_was_kept_for_are_gone() -> None:
    """Nothing else need happen: the scheduler asks to be woken then."""
    timeline = start(limit=26)
    timeline.submit(ticket("person", INTERACTIVE))
    timeline.finish(TicketId("person"), Outcome.COMPLETED)
    for number in range(26):
        timeline.submit(ticket(f"line-{number}", BATCH))
    assert timeline.scheduler.waits_for(TicketId("line-25")) is WaitReason.HEADROOM
    assert timeline.scheduler.next_wakeup_s() == PRESENCE_S
    timeline.advance(PRESENCE_S)

    assert timeline.log[-1] == (PRESENCE_S, Dispatch(TicketId("line-25"), EAST))
    assert timeline.scheduler.next_wakeup_s() is None
