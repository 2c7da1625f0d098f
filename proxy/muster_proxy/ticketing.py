"""What the scheduler is told of a request: its headers and a few fields of its body become a ticket.

A header of Muster's own that is wrong is the client's fault and a 400 that names it. What other libraries send
on their own (`x-stainless-read-timeout`) or what OpenAI may add to (`service_tier`) is taken where it is understood.
"""

import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import cast

from muster_batching import PoolId, RequestClass, SessionId, Ticket, TicketId, UpstreamId
from muster_observability.request_ids import is_identifier
from muster_proxy.exchange import Exchange
from muster_proxy.failures import Reason, RequestError
from muster_proxy.keys import Identity
from muster_proxy.wire import Call

_CLASS = b"x-muster-class"
_DEADLINE = b"x-slo-ttft-ms"
_READ_TIMEOUT = b"x-stainless-read-timeout"

FIRST_BYTES_PER_TOKEN = 4.0
"""What English text has in the vocabularies of today's models, before an engine has told of any."""

_FADE = 0.9
"""Of what is known of a model's ratio, at each new answer: about the last ten count."""

_FIRST_TOKENS = 1000.0
"""How much the first ratio weighs: a prompt of a page soon tells more."""

_PLAUSIBLE = (1.0, 16.0)
"""Bytes per token that text can have: a short chat is mostly JSON, and the template adds tokens to it. A body with
an image in it, or with the address of one, tells nothing of text."""

_MEDIA_TOKENS = 1000
"""What an image costs most models, within a factor of three."""

_CLASSES = {each.value: each for each in RequestClass}
_TIERS = {"priority": RequestClass.INTERACTIVE, "flex": RequestClass.BATCH}

# Digits alone: float() also reads "nan", "1_0" and numbers that no clock has.
_POSITIVE = re.compile(r"(?=.*[1-9])[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)


class TicketOffice:
    """Writes tickets, and learns how many tokens a body's bytes make."""

    def __init__(self) -> None:
        # Not the request's id, which a client may choose, and choose twice.
        self._numbers = itertools.count()
        self._ratios: dict[PoolId, _Ratio] = {}

    def ticket(self, exchange: Exchange, call: Call, identity: Identity) -> Ticket:
        """Write the ticket of a request for a model that exists.

        Args:
            exchange: Has the headers and the time at which it came.
            call: The body, read.
            identity: Who sent it.

        Raises:
            RequestError: `x-muster-class` or `x-slo-ttft-ms` is malformed.
        """
        model = PoolId(exchange.model)
        session = exchange.session_id or _cache_key(call)
        size_bytes = len(call.body)
        return Ticket(
            TicketId(str(next(self._numbers))),
            model,
            size_bytes,
            request_class=identity.clamp(_class_of(exchange, call)),
            tenant=identity.tenant,
            weight=identity.weight,
            session=None if session is None else SessionId(session),
            input_tokens=self._tokens(model, call, size_bytes),
            max_output_tokens=call.max_output_tokens,
            deadline_s=_deadline_s(exchange),
            is_stream=call.is_stream,
        )

    def again(self, ticket: Ticket, avoid: UpstreamId | None) -> Ticket:
        """The ticket of a request that failed at an upstream and is tried once more."""
        return replace(ticket, id=TicketId(str(next(self._numbers))), avoid=avoid)

    def learn(self, ticket: Ticket, input_tokens: int) -> None:
        """Hear how many tokens a ticket's body had."""
        least, most = _PLAUSIBLE
        if least * input_tokens <= ticket.size_bytes <= most * input_tokens:
            self._ratios.setdefault(ticket.pool, _Ratio()).add(ticket.size_bytes, input_tokens)

    def _tokens(self, model: PoolId, call: Call, size_bytes: int) -> int:
        """Estimate the tokens of a prompt."""
        tokens = 0
        if call.contents:
            for part in call.media():
                size_bytes -= _text_bytes(part)
                tokens += _MEDIA_TOKENS
        ratio = self._ratios.get(model)
        bytes_per_token = FIRST_BYTES_PER_TOKEN if ratio is None else ratio.bytes_per_token
        return tokens + max(0, math.ceil(size_bytes / bytes_per_token))


@dataclass(slots=True)
class _Ratio:
    """Bytes per token of one model's prompts: two sums that fade, so that long prompts count for what they weigh."""

    _bytes: float = FIRST_BYTES_PER_TOKEN * _FIRST_TOKENS
    _tokens: float = _FIRST_TOKENS

    @property
    def bytes_per_token(self) -> float:
        return self._bytes / self._tokens

    def add(self, size_bytes: int, tokens: int) -> None:
        self._bytes = _FADE * self._bytes + size_bytes
        self._tokens = _FADE * self._tokens + tokens


def _class_of(exchange: Exchange, call: Call) -> RequestClass:
    named = exchange.header(_CLASS)
    if named is None:
        return _TIERS.get(call.service_tier or "", RequestClass.STANDARD)
    if named not in _CLASSES:
        raise _malformed(_CLASS, "interactive, standard or batch")
    return _CLASSES[named]


def _deadline_s(exchange: Exchange) -> float | None:
    """When the first token must have come, on the clock of `time.monotonic`."""
    if (milliseconds := exchange.header(_DEADLINE)) is not None:
        if not _POSITIVE.fullmatch(milliseconds):
            raise _malformed(_DEADLINE, "a positive number of milliseconds")
        return exchange.started_s + float(milliseconds) / 1000
    seconds = exchange.header(_READ_TIMEOUT)
    if seconds is None or not _POSITIVE.fullmatch(seconds):
        return None
    return exchange.started_s + float(seconds)


def _malformed(header: bytes, expected: str) -> RequestError:
    name = header.decode()
    return RequestError(Reason.INVALID_VALUE, f"Expected {expected} in the header {name}.", name)


def _cache_key(call: Call) -> str | None:
    key = call.cache_key
    return key if key and is_identifier(key) else None


def _text_bytes(part: object) -> int:
    """The size of what a part of a message holds: an image's data or address."""
    if isinstance(part, str):
        return len(part)
    return sum(map(_text_bytes, cast("dict[str, object]", part).values())) if isinstance(part, dict) else 0
