"""What tenants have had: virtual token counters.

A counter per tenant, of one class, on one set of engines that compete for the same slots:

    counter += (INPUT_WEIGHT * input tokens + OUTPUT_WEIGHT * output tokens) / weight

The tenant with the least counter is next (Virtual Token Counter, arXiv 2401.00588). A prompt's token is
computed beside thousands of others, an answer's one by one: hence the weights.

*Charged when*: the prompt and the answer that is expected are charged at the dispatch, so that a tenant cannot
take every slot before the first of its answers counts; tokens above the expectation are charged as they come; the
end trues it up to what was used. What was charged too much is set against the tenant's next charges, so that a
counter never falls.

*Lifted on return*: a tenant that had nothing waiting starts from the virtual time, the counter of the tenant
served last (as it was before that charge), if its own is lower. So nobody saves up a claim by being idle; a debt
is kept while the tenant is present, and as long as the table has room.

*Bound*: while two tenants are both backlogged, and what is charged at the dispatch is what is used, their
counters differ by at most the largest charge of one ticket (each divided by its tenant's weight): the lower one
is always served next, but for slots that are kept for tenants below their share. A wrong expectation adds at most
what it was wrong by, for each ticket in flight.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from muster_batching.tickets import TenantId, Ticket

INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0

FIRST_EXPECTED_TOKENS = 256.0
"""Output tokens that are expected of a tenant of which nothing is known: a page of text is about 500."""

LEARNING_RATE = 0.1
"""Of the mean of a tenant's output tokens: about the last ten answers count."""

PRESENCE_S = 10.0
"""A tenant whose last request came within this time is present. Room is kept for it (`Upstream.takes`)."""

FAR_OVER = 1.25
"""How far above its share a tenant is, where all have tickets waiting, before it counts as above."""

_SWEEP_FROM = 256
_TWO = 2  # a tenant and another


@dataclass(slots=True, eq=False)
class _Account:
    counter: float
    credit: float = 0.0
    mean_output_tokens: float = FIRST_EXPECTED_TOKENS
    weight: float = 1.0
    in_flight: int = 0
    backlogs: int = 0  # pools in which it has tickets waiting


@dataclass(slots=True, eq=False)
class Charge:
    """What one ticket's tenant has been charged for it so far, in tokens.

    Attributes:
        tenant: Who was charged.
        weight: The weight it was charged by.
        input_tokens: Of the prompt.
        output_tokens: Of the answer, expected or come.
    """

    tenant: TenantId
    weight: float
    input_tokens: float
    output_tokens: float


class TenantAccounts:
    """The counters of the tenants of one class on one set of competing engines.

    Attributes:
        virtual_time: The counter of the tenant served last, as it was before.
        seen_s: When the last request of any tenant came.
    """

    def __init__(self) -> None:
        self._accounts: dict[TenantId, _Account] = {}
        self._seen: OrderedDict[TenantId, tuple[float, float]] = OrderedDict()  # when, by what weight
        self._weight_present = 0.0
        self._backlogged = 0
        self._in_flight = 0
        self._sweep_at = _SWEEP_FROM
        self.virtual_time = 0.0
        self.seen_s = -math.inf

    def counter(self, tenant: TenantId) -> float:
        """The tenant's virtual tokens; the virtual time for one that is not known."""
        account = self._accounts.get(tenant)
        return self.virtual_time if account is None else account.counter

    def lift(self, tenant: TenantId) -> float:
        """Bring a tenant that waits for nothing up to the virtual time; return its counter."""
        account = self._account(tenant)
        if not account.backlogs:
            account.counter = max(account.counter, self.virtual_time)
        return account.counter

    def see(self, ticket: Ticket, now_s: float) -> None:
        """Note that a tenant sends a request, and its weight."""
        self.seen_s = now_s
        self._account(ticket.tenant).weight = ticket.weight
        _, weight = self._seen.pop(ticket.tenant, (0.0, 0.0))
        self._seen[ticket.tenant] = (now_s, ticket.weight)
        self._weight_present += ticket.weight - weight

    def charge(self, ticket: Ticket) -> Charge:
        """Charge a ticket that is dispatched, by what is expected of it."""
        account = self._account(ticket.tenant)
        start = self.lift(ticket.tenant)
        self.virtual_time = max(self.virtual_time, start)
        expected = account.mean_output_tokens
        if ticket.max_output_tokens is not None:
            expected = min(expected, ticket.max_output_tokens)
        charge = Charge(ticket.tenant, ticket.weight, ticket.input_tokens, expected)
        _add(account, INPUT_WEIGHT * charge.input_tokens + OUTPUT_WEIGHT * expected, charge.weight)
        account.in_flight += 1
        self._in_flight += 1
        return charge

    def progress(self, charge: Charge, output_tokens: int) -> None:
        """Charge the tokens that came above those expected."""
        more = output_tokens - charge.output_tokens
        if more > 0:
            charge.output_tokens = output_tokens
            _add(self._account(charge.tenant), OUTPUT_WEIGHT * more, charge.weight)

    def settle(self, charge: Charge, used: tuple[int, int] | None) -> None:
        """End a charge: true it up to the input and output tokens used, where they are known."""
        account = self._account(charge.tenant)
        account.in_flight -= 1
        self._in_flight -= 1
        if used is None:
            return
        more = INPUT_WEIGHT * (used[0] - charge.input_tokens) + OUTPUT_WEIGHT * (
            used[1] - charge.output_tokens
        )
        _add(account, more, charge.weight)
        account.mean_output_tokens += LEARNING_RATE * (used[1] - account.mean_output_tokens)

    def begin_backlog(self, tenant: TenantId) -> None:
        """Note that a tenant has a first ticket waiting in a pool."""
        account = self._account(tenant)
        account.backlogs += 1
        self._backlogged += account.backlogs == 1

    def end_backlog(self, tenant: TenantId) -> None:
        """Note that a tenant's last ticket in a pool no longer waits."""
        account = self._account(tenant)
        account.backlogs -= 1
        self._backlogged -= account.backlogs == 0

    def is_over_share(self, tenant: TenantId, now_s: float) -> bool:
        """Whether a tenant has more than its share in flight while another is present that has less.

        Its share of what its class has in flight is its part of the weights of the tenants present. While all
        who are present have tickets waiting, only one that is over it by `FAR_OVER` counts: smaller differences are
        chance, and no room need be kept.
        """
        self._forget_absent(now_s)
        if len(self._seen) < _TWO:
            return False
        account = self._account(tenant)
        used, share = account.in_flight * self._weight_present, self._in_flight * account.weight
        return used > (share if len(self._seen) > self._backlogged else FAR_OVER * share)

    def is_anyone_present(self, now_s: float) -> bool:
        """Whether some tenant is present."""
        return now_s < self.seen_s + PRESENCE_S

    def next_absence_s(self, now_s: float) -> float:
        """When the next of the tenants that are present is so no more; infinite if none is."""
        self._forget_absent(now_s)
        seen_s, _ = next(iter(self._seen.values()), (math.inf, 0.0))
        return seen_s + PRESENCE_S

    @property
    def backlogged(self) -> int:
        """How many tenants have tickets waiting."""
        return self._backlogged

    def join(self, other: "TenantAccounts") -> None:
        """Take over the accounts of engines that compete with these from now on.

        The two virtual times are laid on each other, so that neither side's tenants come first; of a tenant
        that is known to both, the higher counter counts.

        Raises:
            ValueError: The other's virtual time is the higher: then a counter would fall.
        """
        ahead = self.virtual_time - other.virtual_time
        if ahead < 0:
            raise ValueError("expected to join accounts into those with the higher virtual time")
        for tenant, theirs in other._accounts.items():  # noqa: SLF001  of the same class
            is_new = tenant not in self._accounts
            mine = self._account(tenant)
            mine.counter = max(mine.counter, theirs.counter + ahead)
            mine.credit += theirs.credit
            mine.in_flight += theirs.in_flight
            self._backlogged += bool(theirs.backlogs) and not mine.backlogs
            mine.backlogs += theirs.backlogs
            if is_new:
                mine.weight, mine.mean_output_tokens = theirs.weight, theirs.mean_output_tokens
        self._in_flight += other._in_flight  # noqa: SLF001  likewise
        self._join_presence(other)

    def _join_presence(self, other: "TenantAccounts") -> None:
        self.seen_s = max(self.seen_s, other.seen_s)
        seen = [*self._seen.items(), *other._seen.items()]  # noqa: SLF001  of the same class
        self._seen.clear()
        for tenant, (seen_s, weight) in sorted(seen, key=_when):
            self._seen.pop(tenant, None)
            self._seen[tenant] = (seen_s, weight)
        self._weight_present = sum(weight for _, weight in self._seen.values())

    def __len__(self) -> int:
        return len(self._accounts)

    def _account(self, tenant: TenantId) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= self._sweep_at:
                self._sweep()
            account = self._accounts[tenant] = _Account(self.virtual_time)
        return account

    def _sweep(self) -> None:
        # An idle tenant at or below the virtual time would be lifted to it: nothing is lost by forgetting it but what
        # its answers are like. Of one that is absent a debt is lost too, or tenants that come once would add up.
        self._accounts = {
            tenant: account
            for tenant, account in self._accounts.items()
            if account.in_flight
            or account.backlogs
            or (tenant in self._seen and account.counter > self.virtual_time)
        }
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._accounts))

    def _forget_absent(self, now_s: float) -> None:
        while self._seen:
            tenant, (seen_s, weight) = next(iter(self._seen.items()))
            if now_s < seen_s + PRESENCE_S:
                return
            del self._seen[tenant]
            self._weight_present = self._weight_present - weight if self._seen else 0.0


def _add(account: _Account, tokens: float, weight: float) -> None:
    """Raise a counter; what is given back is set against what comes next."""
    due = tokens / weight - account.credit
    account.credit = max(0.0, -due)
    account.counter += max(0.0, due)


def _when(seen: tuple[TenantId, tuple[float, float]]) -> float:
    return seen[1][0]
