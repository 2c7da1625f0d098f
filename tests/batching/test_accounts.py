"""Tenants' accounts: what is charged when, and how far two tenants can be apart."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_batching.accounts import (
    FIRST_EXPECTED_TOKENS,
    INPUT_WEIGHT,
    LEARNING_RATE,
    OUTPUT_WEIGHT,
    PRESENCE_S,
    Charge,
    TenantAccounts,
)
from muster_batching.limits import FixedLimit
from muster_batching.orders import TenantOrder, Waiting
from muster_batching.tickets import PoolId, TenantId, Ticket, TicketId, UpstreamId
from muster_batching.upstreams import Upstream, UpstreamReport

ANN, BOB, CEM = (TenantId(name) for name in ("ann", "bob", "cem"))


def ticket(
    tenant: TenantId = ANN, input_tokens: int = 0, max_output_tokens: int | None = 0, *, weight: float = 1.0
) -> Ticket:
    """Make a ticket, whose answer costs nothing if nothing is said of it."""
    return Ticket(
        TicketId("a"),
        PoolId("chat"),
        1,
        tenant=tenant,
        weight=weight,
        input_tokens=input_tokens,
        max_output_tokens=max_output_tokens,
    )


def spend(accounts: TenantAccounts, tenant: TenantId, tokens: int) -> None:
    """Charge a tenant for a prompt of so many tokens that is answered with nothing."""
    accounts.settle(accounts.charge(ticket(tenant, tokens)), None)


# Charges


def test_a_dispatch_is_charged_by_the_formula() -> None:
    """A prompt's token counts one, an answer's two, divided by the tenant's weight."""
    accounts = TenantAccounts()
    accounts.charge(ticket(ANN, 100, 50))
    accounts.charge(ticket(BOB, 100, 50, weight=4.0))

    assert accounts.counter(ANN) == INPUT_WEIGHT * 100 + OUTPUT_WEIGHT * 50 == 200.0
    assert accounts.counter(BOB) == 50.0


@pytest.mark.parametrize(("most", "expected"), [(None, 256), (1000, 256), (100, 100)])
def test_an_answer_of_which_nothing_is_known_is_a_page(most: int | None, expected: float) -> None:
    """What a new tenant's answer is expected to have is `FIRST_EXPECTED_TOKENS`, or the client's limit if less."""
    accounts = TenantAccounts()
    charge = accounts.charge(ticket(ANN, 10, most))

    assert (charge.input_tokens, charge.output_tokens) == (10, expected)
    assert accounts.counter(ANN) == 10 + 2 * expected


def test_expectations_follow_a_tenants_answers() -> None:
    """Each answer moves the mean of its tenant by a tenth of the difference, and of nobody else."""
    accounts = TenantAccounts()
    accounts.settle(accounts.charge(ticket(ANN, 0, None)), (0, 56))

    mean = FIRST_EXPECTED_TOKENS - LEARNING_RATE * 200
    assert accounts.charge(ticket(ANN, 0, None)).output_tokens == mean == 236.0
    assert accounts.charge(ticket(BOB, 0, None)).output_tokens == FIRST_EXPECTED_TOKENS


def test_tokens_above_the_expectation_are_charged_as_they_come() -> None:
    """Up to the expectation nothing is added; above it each token counts once."""
    accounts = TenantAccounts()
    charge = accounts.charge(ticket(ANN, 10, 100, weight=2.0))
    counters: list[float] = []
    for output_tokens in (1, 100, 101, 150, 150, 120):
        accounts.progress(charge, output_tokens)
        counters.append(accounts.counter(ANN))

    assert counters == [105.0, 105.0, 106.0, 155.0, 155.0, 155.0]


def test_the_end_trues_up_what_was_too_little() -> None:
    """A longer prompt and answer than were charged are charged at the end."""
    accounts = TenantAccounts()
    charge = accounts.charge(ticket(ANN, 10, 100))
    accounts.progress(charge, 120)
    accounts.settle(charge, (30, 150))

    assert accounts.counter(ANN) == 30 + 2 * 150


def test_what_was_charged_too_much_is_set_against_the_next() -> None:
    """A counter stays at what was charged until the next charges have used up the difference."""
    accounts = TenantAccounts()
    accounts.settle(accounts.charge(ticket(ANN, 100, 100)), (60, 50))  # 140 too much
    counters = [accounts.counter(ANN)]
    for tokens in (90, 40, 30, 5):
        spend(accounts, ANN, tokens)
        counters.append(accounts.counter(ANN))

    assert counters == [300.0, 300.0, 300.0, 320.0, 325.0]


def test_what_was_charged_too_much_is_set_against_what_comes() -> None:
    """Tokens above an expectation use it up too, by the weight that each was charged by."""
    accounts = TenantAccounts()
    accounts.settle(accounts.charge(ticket(ANN, 100, weight=2.0)), (20, 0))  # 40 too much
    charge = accounts.charge(ticket(ANN, 0, 0, weight=0.5))
    accounts.progress(charge, 5)  # 20 of the 40
    assert accounts.counter(ANN) == 50.0
    accounts.settle(charge, (10, 10))  # 20 for the prompt, and 20 more

    assert accounts.counter(ANN) == 70.0


def test_an_end_of_unknown_use_leaves_the_estimate() -> None:
    """Without usage nothing is charged or given back, and nothing is learned."""
    accounts = TenantAccounts()
    accounts.settle(accounts.charge(ticket(ANN, 10, None)), None)

    assert accounts.counter(ANN) == 10 + 2 * FIRST_EXPECTED_TOKENS
    assert accounts.charge(ticket(ANN, 0, None)).output_tokens == FIRST_EXPECTED_TOKENS


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 500))),
    st.sampled_from([0.5, 1.0, 4.0]),
)
def test_all_that_is_used_is_charged_in_the_end(
    answers: list[tuple[int, int, int, int]], weight: float
) -> None:
    """However wrong the estimates were, a charge that uses up what is owed brings the counter to the truth."""
    accounts, truth = TenantAccounts(), 0.0
    for input_tokens, most, used_input, used_output in answers:
        charge = accounts.charge(ticket(ANN, input_tokens, most, weight=weight))
        accounts.settle(charge, (used_input, used_output))
        truth += (used_input + 2 * used_output) / weight
        assert accounts.counter(ANN) >= truth - 1e-6
    spend_all = 10**6
    accounts.charge(ticket(ANN, spend_all, weight=weight))

    assert accounts.counter(ANN) == pytest.approx(truth + spend_all / weight)


@dataclass(frozen=True)
class Step:
    """Something that happens to one of the tenants' accounts."""

    kind: str
    tenant: TenantId
    tokens: tuple[int, int]
    weight: float


def happen(accounts: TenantAccounts, open_charges: list[Charge], step: Step, now_s: float) -> None:
    """Let a step happen."""
    oldest = open_charges[0] if open_charges else None
    if step.kind == "see":
        accounts.see(ticket(step.tenant, weight=step.weight), now_s)
    elif step.kind == "charge":
        open_charges.append(accounts.charge(ticket(step.tenant, *step.tokens, weight=step.weight)))
    elif step.kind == "lift":
        accounts.lift(step.tenant)
    elif step.kind == "join":
        other = TenantAccounts()
        open_charges.append(other.charge(ticket(step.tenant, *step.tokens, weight=step.weight)))
        accounts.join(other)
    elif oldest is not None and step.kind == "progress":
        accounts.progress(oldest, step.tokens[1])
    elif oldest is not None:
        accounts.settle(open_charges.pop(0), step.tokens)


amounts = st.integers(0, 10) | st.integers(0, 5000)
steps = st.builds(
    Step,
    st.sampled_from(["see", "charge", "charge", "lift", "progress", "settle", "settle", "join"]),
    st.sampled_from([ANN, BOB, CEM]),
    st.tuples(amounts, amounts),
    st.sampled_from([0.25, 1.0, 3.0]),
)


@given(st.lists(steps, max_size=40))
def test_no_counter_ever_falls(history: list[Step]) -> None:
    """Whatever is charged, trued up, lifted or joined, no counter goes down, nor does the virtual time."""
    accounts, open_charges = TenantAccounts(), list[Charge]()
    before = [0.0] * 4
    for number, step in enumerate(history):
        happen(accounts, open_charges, step, float(number))
        after = [*map(accounts.counter, (ANN, BOB, CEM)), accounts.virtual_time]

        assert all(new >= old for new, old in zip(after, before, strict=True))
        before = after


# Lifting


def test_the_virtual_time_is_the_counter_of_who_was_served() -> None:
    """It is the last one's, as it was before its charge."""
    accounts = TenantAccounts()
    times: list[float] = []
    for tokens in (100, 50, 10):
        spend(accounts, ANN, tokens)
        times.append(accounts.virtual_time)

    assert times == [0.0, 100.0, 150.0]
    assert accounts.counter(BOB) == 150.0  # nothing is known of him


def test_who_was_idle_starts_from_the_virtual_time() -> None:
    """A tenant that waited for nothing gains nothing by it: its next charge starts where the others are."""
    accounts = TenantAccounts()
    spend(accounts, BOB, 5)
    for _ in range(3):
        spend(accounts, ANN, 100)
    assert (accounts.counter(BOB), accounts.virtual_time) == (5.0, 200.0)

    assert accounts.lift(BOB) == 200.0
    spend(accounts, BOB, 7)
    assert accounts.counter(BOB) == 207.0


def test_a_charge_lifts_by_itself() -> None:
    """A ticket that needs not wait is charged from the virtual time too."""
    accounts = TenantAccounts()
    spend(accounts, BOB, 5)
    spend(accounts, ANN, 100)
    spend(accounts, ANN, 100)
    spend(accounts, BOB, 7)

    assert accounts.counter(BOB) == 107.0


def test_who_waits_is_not_lifted() -> None:
    """A tenant that has something waiting keeps its claim while others are served."""
    accounts = TenantAccounts()
    accounts.begin_backlog(BOB)
    for _ in range(3):
        spend(accounts, ANN, 100)
    assert accounts.lift(BOB) == 0.0
    accounts.end_backlog(BOB)

    assert accounts.lift(BOB) == 200.0


def test_a_debt_is_not_lifted_away() -> None:
    """A tenant above the virtual time stays there."""
    accounts = TenantAccounts()
    spend(accounts, ANN, 1000)
    spend(accounts, BOB, 10)

    assert accounts.lift(ANN) == 1000.0


# Backlogs and shares


def test_tenants_with_something_waiting_are_counted_once() -> None:
    """A tenant that waits in two pools is one, until the last of its backlogs ends."""
    accounts = TenantAccounts()
    counts = [accounts.backlogged]
    for change in (
        accounts.begin_backlog,
        accounts.begin_backlog,
        accounts.end_backlog,
        accounts.end_backlog,
    ):
        change(ANN)
        counts.append(accounts.backlogged)
    accounts.begin_backlog(ANN)
    accounts.begin_backlog(BOB)

    assert counts == [0, 1, 1, 1, 0]
    assert accounts.backlogged == 2


def present(*tenants: tuple[TenantId, float, int]) -> TenantAccounts:
    """Make accounts of tenants that came at 0 s, with these weights and so many tickets in flight."""
    accounts = TenantAccounts()
    for tenant, weight, in_flight in tenants:
        accounts.see(ticket(tenant, weight=weight), 0.0)
        for _ in range(in_flight):
            accounts.charge(ticket(tenant, weight=weight))
    return accounts


@pytest.mark.parametrize(
    ("in_flight", "weight", "is_over"), [(4, 1.0, False), (5, 1.0, True), (8, 4.0, False), (9, 4.0, True)]
)
def test_a_share_is_by_the_weights_of_those_present(in_flight: int, weight: float, is_over: bool) -> None:
    """Beside a tenant of weight 1, one of weight w has its share with w / (w + 1) of what is in flight."""
    bobs = 4 if weight == 1.0 else 2
    accounts = present((ANN, weight, in_flight), (BOB, 1.0, bobs))

    assert accounts.is_over_share(ANN, 0.0) is is_over
    assert accounts.is_over_share(BOB, 0.0) is (bobs * (weight + 1) > in_flight + bobs)


def test_a_tenant_that_is_alone_has_no_share() -> None:
    """Nothing is too much for a tenant while nobody else is present."""
    assert not present((ANN, 1.0, 100)).is_over_share(ANN, 0.0)


def test_a_tenant_that_is_silent_is_absent() -> None:
    """Room is kept for a tenant up to `PRESENCE_S` after its last request."""
    accounts = present((ANN, 1.0, 5), (BOB, 1.0, 0))
    accounts.see(ticket(ANN), 1.0)

    assert accounts.is_over_share(ANN, PRESENCE_S - 0.1)
    assert not accounts.is_over_share(ANN, PRESENCE_S)
    assert not accounts.is_over_share(ANN, PRESENCE_S + 1.0)  # by then nobody is present


def test_a_new_request_keeps_a_tenant_present_by_its_new_weight() -> None:
    """The latest request's time and weight count, not the first one's."""
    accounts = present((ANN, 1.0, 3), (BOB, 1.0, 3))
    assert not accounts.is_over_share(ANN, 0.0)
    accounts.see(ticket(BOB, weight=2.0), 5.0)
    accounts.see(ticket(ANN), 5.0)

    assert accounts.is_over_share(ANN, PRESENCE_S + 4.0)
    assert not accounts.is_over_share(BOB, PRESENCE_S + 4.0)


def test_the_weight_of_the_absent_does_not_count() -> None:
    """Who leaves takes the weight along: of the two that stay each has a half."""
    accounts = present((CEM, 10.0, 0), (ANN, 1.0, 2), (BOB, 1.0, 2))
    for tenant in (ANN, BOB):
        accounts.see(ticket(tenant), 1.0)

    assert accounts.is_over_share(ANN, PRESENCE_S - 0.1)
    assert not accounts.is_over_share(ANN, PRESENCE_S)


@pytest.mark.parametrize(("in_flight", "is_over"), [(5, False), (6, True)])
def test_where_all_wait_only_far_over_counts(in_flight: int, is_over: bool) -> None:
    """While everyone present has something waiting, a quarter above the share is no more than chance."""
    accounts = present((ANN, 1.0, in_flight), (BOB, 1.0, 3))
    accounts.begin_backlog(ANN)
    assert accounts.is_over_share(ANN, 0.0)
    accounts.begin_backlog(BOB)

    assert accounts.is_over_share(ANN, 0.0) is is_over


def test_an_end_gives_the_share_back() -> None:
    """What has ended is in flight no longer, whether its use is known or not."""
    accounts = present((ANN, 1.0, 0), (BOB, 1.0, 0))
    charges = [accounts.charge(ticket(ANN)) for _ in range(2)]
    accounts.charge(ticket(BOB))
    assert accounts.is_over_share(ANN, 0.0)
    accounts.settle(charges[0], None)
    assert not accounts.is_over_share(ANN, 0.0)
    accounts.settle(charges[1], (0, 0))

    assert accounts.is_over_share(BOB, 0.0)


# Joining


def test_joined_accounts_share_one_virtual_time() -> None:
    """The other's counters are moved by as much as its virtual time lies behind."""
    one, other = TenantAccounts(), TenantAccounts()
    for tokens in (1000, 50):
        spend(one, ANN, tokens)
    for tokens in (300, 20):
        spend(other, BOB, tokens)
    one.join(other)

    assert (one.virtual_time, one.counter(ANN), one.counter(BOB)) == (1000.0, 1050.0, 1020.0)


def test_of_a_tenant_known_to_both_the_higher_counter_counts() -> None:
    """Joining is no way to lose a debt, on either side."""
    one, other = TenantAccounts(), TenantAccounts()
    for accounts, anns, bobs in ((one, 400, 10), (other, 30, 500)):
        spend(accounts, ANN, anns)
        spend(accounts, BOB, bobs)
    one.join(other)

    assert (one.counter(ANN), one.counter(BOB)) == (400.0, 500.0)


def test_what_is_owed_and_in_flight_is_joined() -> None:
    """Credits, tickets in flight and backlogs of both sides count, each tenant once."""
    one, other = TenantAccounts(), TenantAccounts()
    charges: list[Charge] = []
    for accounts in (one, other):
        accounts.settle(accounts.charge(ticket(ANN, 100)), (70, 0))
        charges += [accounts.charge(ticket(ANN)), accounts.charge(ticket(BOB))]
        accounts.begin_backlog(ANN)
    other.begin_backlog(BOB)
    one.join(other)
    spend(one, ANN, 61)
    for charge in charges:
        one.settle(charge, None)
    one.end_backlog(ANN)

    assert one.counter(ANN) == 101.0
    assert one.backlogged == 2
    one.end_backlog(ANN)
    assert one.backlogged == 1


def test_a_tenant_known_to_the_other_alone_brings_its_own() -> None:
    """Its mean answer and its weight come along; those of a tenant known to both stay."""
    one, other = TenantAccounts(), TenantAccounts()
    other.settle(other.charge(ticket(BOB, 0, None)), (0, 56))
    other.settle(other.charge(ticket(ANN, 0, None)), (0, 56))
    other.see(ticket(BOB, weight=3.0), 0.0)
    one.settle(one.charge(ticket(ANN, 0, None)), (0, 156))
    one.join(other)

    assert one.charge(ticket(BOB, 0, None)).output_tokens == 236.0
    assert one.charge(ticket(ANN, 0, None)).output_tokens == 246.0
    one.see(ticket(ANN), 1.0)
    one.see(ticket(CEM, weight=2.0), 1.0)
    assert not one.is_over_share(BOB, 1.0)  # half of what is in flight, and of the weights three thirds
    assert one.is_over_share(ANN, 1.0)


def test_accounts_are_joined_into_those_ahead() -> None:
    """The other way round a counter would fall, so it is refused and changes nothing."""
    one, other = TenantAccounts(), TenantAccounts()
    for tokens in (1000, 50):
        spend(other, ANN, tokens)

    with pytest.raises(ValueError, match="higher virtual time"):
        one.join(other)
    assert (len(one), one.counter(ANN)) == (0, 0.0)


# Forgetting


def test_only_tenants_that_would_be_lifted_are_forgotten() -> None:
    """Of 1000 tenants, those that have neither debt nor backlog nor anything in flight need no account."""
    accounts = TenantAccounts()
    tenants = [TenantId(str(number)) for number in range(1000)]
    for number, tenant in enumerate(tenants):
        accounts.see(ticket(tenant), 0.0)
        if number % 10 == 1:
            spend(accounts, tenant, 100)
        elif number % 10 == 2:
            accounts.charge(ticket(tenant))
        elif number % 10 == 3:
            accounts.begin_backlog(tenant)
    kept = [number for number in range(1000) if number % 10 in (1, 2, 3)]

    assert len(accounts) < 3 * len(kept)
    assert [accounts.counter(tenant) for tenant in tenants] == [100.0 * (n % 10 == 1) for n in range(1000)]
    assert accounts.backlogged == 100


def test_accounts_do_not_grow_with_tenants_that_are_gone() -> None:
    """Of 100,000 tenants that came and were turned away there are never more than a few hundred accounts."""
    accounts = TenantAccounts()
    for number in range(100_000):
        accounts.see(ticket(TenantId(str(number))), float(number))
        assert not accounts.is_over_share(TenantId(str(number)), float(number))
        assert len(accounts) <= 257


def test_tenants_with_a_debt_that_came_once_are_forgotten() -> None:
    """Of 10,000 tenants that had one request each, only those present lately have accounts left."""
    accounts = TenantAccounts()
    for number in range(10_000):
        tenant = TenantId(str(number))
        accounts.see(ticket(tenant), float(number))
        spend(accounts, tenant, 100)
        assert not accounts.is_over_share(tenant, float(number))

    assert len(accounts) <= 257


def test_tenants_that_were_present_stay_so_when_accounts_are_joined() -> None:
    """The joined side's tenants and their weights count among those present, each once."""
    one, other = TenantAccounts(), TenantAccounts()
    one.see(ticket(TenantId("a")), 1.0)
    one.see(ticket(TenantId("both")), 2.0)
    other.see(ticket(TenantId("both")), 3.0)
    other.see(ticket(TenantId("b")), 4.0)
    other.charge(ticket(TenantId("b")))
    one.join(other)

    assert one.seen_s == 4.0
    assert one.is_over_share(TenantId("b"), 4.0)
    assert not one.is_over_share(TenantId("b"), 14.0)


# The bound


@dataclass(frozen=True)
class Turn:
    """Tickets come for a tenant, then some are served."""

    tenant: TenantId
    tokens: list[tuple[int, int]]
    served: int


EAST = Upstream(
    UpstreamId("east"), UpstreamReport(FixedLimit(1), frozenset(), available=True), FixedLimit(1).start()
)

turns = st.builds(
    Turn,
    st.sampled_from([ANN, BOB, CEM]),
    st.lists(st.tuples(amounts, st.integers(0, 200)), max_size=6),
    st.integers(0, 5),
)


@settings(max_examples=100)
@given(
    st.lists(turns, max_size=25),
    st.fixed_dictionaries(
        {tenant: st.sampled_from([0.01, 0.5, 1.0, 3.0, 100.0]) for tenant in (ANN, BOB, CEM)}
    ),
)
def test_backlogged_tenants_differ_by_one_charge_at_most(
    history: list[Turn], weights: dict[TenantId, float]
) -> None:
    """While two tenants both wait and costs are as expected, their counters stay within the largest charge."""
    order, largest, number = TenantOrder(TenantAccounts()), 0.0, 0
    for turn in history:
        for input_tokens, most in turn.tokens:
            number += 1
            new = ticket(turn.tenant, input_tokens, most, weight=weights[turn.tenant])
            order.add(Waiting(new, number, 0.0, 1000.0))
        for _ in range(turn.served):
            waiting = order.first(EAST, 0.0)
            if waiting is None:
                break
            waiting.is_waiting = False
            order.left(waiting)
            charge = order.accounts.charge(waiting.ticket)
            order.accounts.settle(charge, None)
            largest = max(largest, (charge.input_tokens + 2 * charge.output_tokens) / charge.weight)
            counters = [order.accounts.counter(each) for each in (ANN, BOB, CEM) if order.waiting_of(each)]
            assert not counters or max(counters) - min(counters) <= largest * (1 + 1e-9)
