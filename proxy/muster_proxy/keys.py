"""API keys: whose request it is, and what that tenant may have.

A key is 256 random bits that its owner keeps. The proxy's configuration has the SHA-256 of each key, and a key that
comes with a request is hashed before anything else is done with it. So neither the configuration nor what is learned
from its digests lets anybody in, and a slow password hash would add nothing: nobody tries 2^256 keys.
"""

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from muster_batching import RequestClass, TenantId
from muster_batching.tickets import CLASSES, NOBODY
from muster_proxy.failures import Reason, RequestError

MOST_KEY_BYTES = 512
"""No longer key is looked at. One of ours has 53; a signed token of another system may have some hundred."""

_PREFIX = "sk-muster-"  # by which scanners for leaked secrets can tell it
_SCHEME = "sha256:"
_SALT_BYTES = 32
_RANK = {each: rank for rank, each in enumerate(CLASSES)}
_NEVER = datetime.max.replace(tzinfo=UTC)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_SENDABLE = re.compile(rf"[\x21-\x7e]{{1,{MOST_KEY_BYTES}}}")

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class KeySettings(BaseModel):
    """One API key of a tenant."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")] = Field(
        repr=False,
        description="SHA-256 of the key, `sha256:` and 64 hexadecimal digits, as `muster key` prints it.",
    )
    tenant: _Name = Field(
        description="Who pays for what comes with the key. One tenant may have several keys."
    )
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0,
        description="The tenant's share of a busy engine beside the others' of the same class; the same for all keys "
        "of one tenant.",
    )
    request_class: RequestClass = Field(
        default=RequestClass.INTERACTIVE,
        validation_alias="class",
        serialization_alias="class",
        description="The most urgent class that its requests may have: `interactive` (any), `standard` or `batch`. "
        "What asks for a more urgent one gets this one.",
    )
    expires: AwareDatetime | None = Field(
        default=None,
        description="When the key stops to work, with a time zone: `2030-01-31T00:00:00Z`. To change a key, list the "
        "new one beside the old and let the old one expire.",
    )
    name: _Name | None = Field(default=None, description="Which of the tenant's keys it is, in logs.")


def checked(keys: list[KeySettings]) -> list[KeySettings]:
    """Give the keys back if they agree with each other; for use as a validator of the setting.

    Raises:
        ValueError: A key is listed twice, or one tenant has two weights. The message names the entries by their
            places, counted from 0 as in pydantic's own messages, and tells nothing of what is in them.
    """
    digests: dict[str, int] = {}
    tenants: dict[str, int] = {}
    for place, key in enumerate(keys):
        if (first := digests.setdefault(key.digest, place)) != place:
            raise ValueError(f"entries {first} and {place} have the same digest: list a key once")
        if keys[first := tenants.setdefault(key.tenant, place)].weight != key.weight:
            raise ValueError(
                f"entries {first} and {place} are of one tenant and have different weights: give it one weight"
            )
    return keys


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request, and what it may have.

    Attributes:
        tenant: Who pays.
        weight: The tenant's share beside other tenants', over 0.
        ceiling: The most urgent class that the request may have.
        cache_salt: Goes to the engine as `cache_salt`, so that no tenant can tell from the time of an answer what
            another has in the engine's prefix cache (CVE-2025-46570). None leaves the cache common to all.
        key_name: Which of the tenant's keys it was, if that has a name.
    """

    tenant: TenantId
    weight: float
    ceiling: RequestClass
    cache_salt: str | None
    key_name: str | None = None

    def clamp(self, wanted: RequestClass) -> RequestClass:
        """The less urgent one of the wanted class and the ceiling."""
        return max(wanted, self.ceiling, key=_RANK.__getitem__)


class Door(Protocol):
    """Tells who sends a request."""

    def identify(self, authorization: str | None, api_key: str | None) -> Identity:
        """Tell whose key came with a request.

        Args:
            authorization: The header of that name: `Bearer KEY`, the scheme in any case.
            api_key: The header `x-api-key`, which Anthropic's SDKs send. It counts where the other has no key.

        Raises:
            RequestError: Nobody's: `Reason.INVALID_API_KEY`, whatever the reason is.
        """
        ...


def door(keys: list[KeySettings]) -> Door:
    """The way in: past the keys if there are any, even if all of them have expired; else open."""
    return KeyRing(keys) if keys else OpenDoor()


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    identity: Identity
    expires: datetime


# What an unknown key is compared with: no SHA-256 has no bytes.
_STRANGER = _Entry(b"", Identity(NOBODY, 1.0, RequestClass.BATCH, None), _LONG_AGO)


def _wall_clock() -> datetime:
    return datetime.now(UTC)


class KeyRing:
    """Lets in who has one of the configured keys.

    Args:
        keys: From the configuration.
        clock: Tells the date, with a time zone. The wall clock: `expires` is a date.

    Raises:
        ValueError: The keys do not agree (see `checked`).
    """

    def __init__(self, keys: list[KeySettings], clock: Callable[[], datetime] = _wall_clock) -> None:
        self._clock = clock
        salts = _salts(checked(keys))
        self._entries = {entry.digest: entry for entry in (_entry(each, salts[each.tenant]) for each in keys)}

    def identify(self, authorization: str | None, api_key: str | None) -> Identity:
        """See `Door.identify`. About 2 us; a key that is no ASCII or too long is not even hashed."""
        key = _key_of(authorization, api_key)
        if key is None or len(key) > MOST_KEY_BYTES or not key.isascii():
            raise RequestError(Reason.INVALID_API_KEY)
        digest = hashlib.sha256(key.encode("ascii")).digest()
        # The lookup takes a time that depends on the digest of what was sent, and not on the key itself. Say that it
        # told a stranger how a stored digest begins: he cannot choose what his guesses hash to, so a key with a digest
        # that begins like it takes as many hashes as there are such beginnings, and gets him no nearer to the key,
        # which has to have the whole digest. What follows is the same work for a known key and for an unknown one.
        entry = self._entries.get(digest, _STRANGER)
        is_known = hmac.compare_digest(entry.digest, digest)
        is_in_time = self._clock() < entry.expires
        if not (is_known and is_in_time):
            raise RequestError(Reason.INVALID_API_KEY)
        return entry.identity


class OpenDoor:
    """Lets everybody in, where no keys are configured; who sends the same key is the same tenant."""

    def identify(self, authorization: str | None, api_key: str | None) -> Identity:
        """See `Door.identify`; raises nothing."""
        return Identity(tenant_of(authorization, api_key), 1.0, RequestClass.INTERACTIVE, None)


def tenant_of(authorization: str | None, api_key: str | None = None) -> TenantId:
    """Who pays: a digest of the key, 32 hexadecimal digits, so that the key itself goes no further.

    Args:
        authorization: As for `Door.identify`.
        api_key: Likewise.
    """
    key = _key_of(authorization, api_key)
    if key is None:
        return NOBODY
    return TenantId(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest())


class BadKeyLimit:
    """Counts refused keys by the address they came from, in windows of a minute.

    It keeps a flood of wrong keys from being worth an answer each, and finds the client that has a wrong key and does
    not stop. It is asked once a key has been refused: who has a good key is let in from any address, since many may
    share one.

    Args:
        most: Refused keys that one address may send in a minute.
        most_addresses: Addresses that are remembered. Above it the one whose minute began first is forgotten.
    """

    WINDOW_S = 60.0

    def __init__(self, *, most: int = 60, most_addresses: int = 10_000) -> None:
        self._most = most
        self._most_addresses = most_addresses
        # Each address with the beginning of its minute and the keys in it, in the order of these beginnings. An
        # OrderedDict: a dict takes the longer to find its first item, the more were deleted in front of it.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        """The addresses that are remembered."""
        return len(self._windows)

    def refused(self, address: str, now_s: float) -> None:
        """Count a refused key.

        Args:
            address: Where it came from.
            now_s: On a clock that does not go back.
        """
        began_s, count = self._windows.get(address, (now_s, 0))
        if self._is_over(began_s, now_s):
            del self._windows[address]
            began_s, count = now_s, 0
        self._windows[address] = (began_s, count + 1)
        if len(self._windows) > self._most_addresses:
            self._windows.popitem(last=False)

    def retry_after_s(self, address: str, now_s: float) -> float | None:
        """Seconds for which this address's bad keys are answered with 429; None where 401 is the answer.

        Args:
            address: Where the key came from.
            now_s: On the same clock.
        """
        began_s, count = self._windows.get(address, (now_s, 0))
        if count < self._most or self._is_over(began_s, now_s):
            return None
        return began_s + self.WINDOW_S - now_s

    def _is_over(self, began_s: float, now_s: float) -> bool:
        return now_s >= began_s + self.WINDOW_S


def new_key() -> str:
    """A key of 256 random bits, in characters that need no quoting in a header, a shell or a URL."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """What the configuration has of a key."""
    return _SCHEME + hashlib.sha256(key.encode()).hexdigest()


def is_sendable(key: str) -> bool:
    """Whether the proxy can be sent this as a key: 1 to 512 visible ASCII characters, no spaces."""
    return _SENDABLE.fullmatch(key) is not None


def _key_of(authorization: str | None, api_key: str | None) -> str | None:
    """The one key that counts.

    There is this one place that reads it, so that both headers mean the same everywhere.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and (token := token.strip(" ")):
        return token
    return (api_key or "").strip(" ") or None


def _entry(key: KeySettings, salt: str) -> _Entry:
    identity = Identity(TenantId(key.tenant), key.weight, key.request_class, salt, key.name)
    return _Entry(_raw(key), identity, key.expires or _NEVER)


def _salts(keys: Iterable[KeySettings]) -> dict[str, str]:
    """The salt of each tenant's prefix cache, 64 hexadecimal digits.

    It is a keyed hash of the tenant's name (BLAKE2b, as a pseudorandom function). Its key is the digest of the key
    that is listed first for the tenant. So replicas with one configuration agree, a key that is added below does not
    empty the tenant's cache, and who knows Muster and guesses names can still not tell a salt, nor find a name from
    one in an engine's log.
    """
    salts: dict[str, str] = {}
    for key in keys:
        if key.tenant not in salts:
            keyed = hashlib.blake2b(
                key.tenant.encode(), key=_raw(key), digest_size=_SALT_BYTES, person=b"muster cachesalt"
            )
            salts[key.tenant] = keyed.hexdigest()
    return salts


def _raw(key: KeySettings) -> bytes:
    return bytes.fromhex(key.digest.removeprefix(_SCHEME))
