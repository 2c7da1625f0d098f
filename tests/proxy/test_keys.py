"""API keys: who is let in, as whom, and what a stranger learns."""

import re
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from muster_batching import RequestClass
from muster_batching.tickets import CLASSES, NOBODY
from muster_proxy.failures import Reason, RequestError
from muster_proxy.keys import (
    BadKeyLimit,
    Door,
    Identity,
    KeyRing,
    KeySettings,
    OpenDoor,
    checked,
    digest_of,
    door,
    is_sendable,
    new_key,
    tenant_of,
)

KEY = "sk-muster-one-key-of-the-tenant-acme"
OTHER = "sk-muster-another-key"
NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
REFUSED = Reason.INVALID_API_KEY


def setting(key: str = KEY, tenant: str = "acme", /, **fields: Any) -> KeySettings:
    """An entry of `proxy: keys:`, as the file has it."""
    return KeySettings.model_validate({"digest": digest_of(key), "tenant": tenant, **fields})


def ring(*keys: KeySettings, clock: Callable[[], datetime] = lambda: NOW) -> KeyRing:
    """A key ring at noon."""
    return KeyRing(list(keys), clock)


def refusal(way_in: Door, authorization: str | None, api_key: str | None = None) -> Reason:
    """Why nobody is let in."""
    with pytest.raises(RequestError) as caught:
        way_in.identify(authorization, api_key)
    assert caught.value.http_status == 401
    return caught.value.reason


def test_a_key_lets_its_tenant_in() -> None:
    """With the weight and the ceiling that the configuration gives it."""
    keys = ring(
        setting(OTHER, "other"), setting(weight=2.5, expires=NOW + SECOND, name="ci", **{"class": "standard"})
    )
    identity = keys.identify(f"Bearer {KEY}", None)

    assert (identity.tenant, identity.weight, identity.ceiling) == ("acme", 2.5, RequestClass.STANDARD)
    assert identity.key_name == "ci"
    assert keys.identify(f"Bearer {OTHER}", None).tenant == "other"


def test_a_key_is_of_weight_1_any_class_and_no_end_unless_it_says_so() -> None:
    """These are the defaults."""
    last_day = datetime(9999, 12, 31, tzinfo=UTC)
    identity = ring(setting(), clock=lambda: last_day).identify(f"Bearer {KEY}", None)

    assert (identity.weight, identity.ceiling, identity.key_name) == (1, RequestClass.INTERACTIVE, None)


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (f"Bearer {KEY}", None),
        (f"bearer {KEY}", None),
        (f"BEARER  {KEY} ", None),
        (None, KEY),
        (None, f" {KEY} "),
        ("", KEY),
        ("Bearer", KEY),
        ("Bearer ", KEY),
        ("Basic c2stb25l", KEY),
        (f"Bearer {KEY}", OTHER),
    ],
)
def test_a_key_comes_as_bearer_token_else_in_x_api_key(
    authorization: str | None, api_key: str | None
) -> None:
    """Where a header has none the other counts; where both have one it is the bearer token."""
    assert ring(setting()).identify(authorization, api_key).tenant == "acme"


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None),
        ("", ""),
        ("Bearer", None),
        ("Bearer  ", " "),
        (KEY, None),
        (f"Basic {KEY}", None),
        (f"Bearer{KEY}", None),
        (f"Bearer\t{KEY}", None),
        (f"Bearer {KEY[:-1]}", None),
        (f"Bearer {KEY}x", None),
        (f"Bearer {KEY.upper()}", None),
        (f"Bearer {KEY} {KEY}", None),
        (f"Bearer {OTHER}", KEY),
        (None, f"Bearer {KEY}"),
        ("Bearer " + "k" * 513, None),
        ("Bearer " + "k" * 100_000, None),
        ("Bearer kéy", None),
        ("Bearer \udc80", None),
    ],
)
def test_who_has_no_key_is_refused(authorization: str | None, api_key: str | None) -> None:
    """With one and the same reason, whether the key is missing, malformed, too long or wrong."""
    assert refusal(ring(setting()), authorization, api_key) is REFUSED


@pytest.mark.parametrize("length", [512, 513])
def test_a_key_longer_than_512_bytes_is_refused_even_if_it_is_configured(length: int) -> None:
    """Nobody has a longer one hashed here."""
    key = "k" * length
    keys = ring(setting(key))

    if length == 512:
        assert keys.identify(f"Bearer {key}", None).tenant == "acme"
    else:
        assert refusal(keys, f"Bearer {key}") is REFUSED


@given(
    key=st.text() | st.text(string.printable), scheme=st.sampled_from(["Bearer ", "bearer ", "", "Basic "])
)
def test_no_text_but_the_key_lets_anybody_in(key: str, scheme: str) -> None:
    """And none does anything but be refused, in either header."""
    keys = ring(setting())
    assert refusal(keys, scheme + key) is REFUSED
    assert refusal(keys, None, scheme + key) is REFUSED


@given(place=st.integers(0, len(KEY) - 1), instead=st.characters(exclude_characters=" "))
def test_a_key_with_one_wrong_character_is_a_wrong_key(place: int, instead: str) -> None:
    """Wherever it is."""
    changed = KEY[:place] + instead + KEY[place + 1 :]
    keys = ring(setting())

    if changed == KEY:
        assert keys.identify(None, changed).tenant == "acme"
    else:
        assert refusal(keys, None, changed) is REFUSED


def test_a_digest_is_no_key() -> None:
    """Who reads the configuration gets in with nothing that it has, nor with the raw bytes of it."""
    digest = digest_of(KEY)
    raw = bytes.fromhex(digest.removeprefix("sha256:")).decode("latin-1")
    for stolen in (digest, digest.removeprefix("sha256:"), raw):
        assert refusal(ring(setting()), f"Bearer {stolen}") is REFUSED
        assert refusal(ring(setting()), None, stolen) is REFUSED


def test_a_key_works_until_it_expires() -> None:
    """To the moment, in whatever time zone that is written."""
    now = NOW
    keys = ring(setting(expires="2030-01-31T14:00:00+02:00"), clock=lambda: now)

    now = NOW - timedelta(microseconds=1)
    assert keys.identify(f"Bearer {KEY}", None).tenant == "acme"
    now = NOW
    assert refusal(keys, f"Bearer {KEY}") is REFUSED
    now = NOW + SECOND
    assert refusal(keys, f"Bearer {KEY}") is REFUSED


def test_a_key_can_be_changed_without_a_gap() -> None:
    """While both are listed either is the same tenant's, with one prefix cache; then the old one stops."""
    now = NOW
    old, new = setting(expires=NOW + SECOND, name="old"), setting(OTHER, name="new")
    keys = ring(old, new, clock=lambda: now)

    by_old, by_new = keys.identify(f"Bearer {KEY}", None), keys.identify(f"Bearer {OTHER}", None)
    assert (by_old.tenant, by_old.cache_salt) == (by_new.tenant, by_new.cache_salt)
    assert (by_old.key_name, by_new.key_name) == ("old", "new")
    now = NOW + SECOND
    assert refusal(keys, f"Bearer {KEY}") is REFUSED
    assert keys.identify(f"Bearer {OTHER}", None) == by_new


def test_an_unknown_key_has_the_date_looked_up_too() -> None:
    """It is the same work as for a known one, so that the time tells nothing of the keys there are."""
    looks: list[datetime] = []

    def clock() -> datetime:
        looks.append(NOW)
        return NOW

    keys = ring(setting(), clock=clock)
    keys.identify(f"Bearer {KEY}", None)
    assert refusal(keys, f"Bearer {OTHER}") is REFUSED
    assert len(looks) == 2


def test_the_wall_clock_tells_whether_a_key_has_expired() -> None:
    """Where no other clock is given."""
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
    keys = KeyRing([setting(expires=past), setting(OTHER, expires=future)])

    assert refusal(keys, f"Bearer {KEY}") is REFUSED
    assert keys.identify(f"Bearer {OTHER}", None).tenant == "acme"


def test_a_key_ring_does_not_show_what_it_holds() -> None:
    """Nor does a setting: neither the key nor its digest is in what a debugger or a log would print."""
    keys = ring(setting())
    shown = f"{keys!r} {setting()!r} {setting()} {keys.identify(None, KEY)!r}"
    digest = digest_of(KEY).removeprefix("sha256:")
    assert digest not in shown
    assert repr(bytes.fromhex(digest)) not in shown
    assert KEY not in shown


def test_each_tenant_has_a_cache_salt_of_its_own() -> None:
    """The same after a restart, in another replica and with other tenants listed around it."""
    keys = [setting(), setting(OTHER, "other")]
    salts = {each: ring(*keys).identify(None, each).cache_salt for each in (KEY, OTHER)}

    assert len(set(salts.values())) == 2
    assert salts == {each: ring(*reversed(keys)).identify(None, each).cache_salt for each in salts}
    assert salts[KEY] == ring(setting(), setting("third")).identify(None, KEY).cache_salt


def test_a_cache_salt_tells_nothing_of_its_tenant() -> None:
    """It has neither name nor digest in it, and the name alone does not make it: that could be guessed."""
    digest = digest_of(KEY).removeprefix("sha256:")
    salt = ring(setting()).identify(None, KEY).cache_salt or ""

    assert re.fullmatch("[0-9a-f]{64}", salt)
    assert salt != digest
    assert "acme" not in salt
    assert b"acme".hex() not in salt
    assert salt != ring(setting(OTHER)).identify(None, OTHER).cache_salt


@given(wanted=st.sampled_from(CLASSES), ceiling=st.sampled_from(CLASSES))
def test_no_class_is_more_urgent_than_its_ceiling(wanted: RequestClass, ceiling: RequestClass) -> None:
    """What is within it stays as it is."""
    got = Identity(NOBODY, 1.0, ceiling, None).clamp(wanted)
    assert CLASSES.index(got) == max(CLASSES.index(wanted), CLASSES.index(ceiling))


@pytest.mark.parametrize(
    ("fields", "place", "told"),
    [
        ({"digest": KEY}, "digest", "sha256:"),
        ({"digest": digest_of(KEY).upper()}, "digest", "sha256:"),
        ({"digest": digest_of(KEY)[:-1]}, "digest", "sha256:"),
        ({"digest": digest_of(KEY) + "\n"}, "digest", "sha256:"),
        ({"digest": digest_of(KEY).removeprefix("sha256:")}, "digest", "sha256:"),
        ({"tenant": ""}, "tenant", "A-Z"),
        ({"tenant": "a b"}, "tenant", "A-Z"),
        ({"tenant": "a" * 65}, "tenant", "A-Z"),
        ({"weight": 0}, "weight", "greater than 0"),
        ({"weight": -1}, "weight", "greater than 0"),
        ({"weight": float("inf")}, "weight", "finite"),
        ({"weight": float("nan")}, "weight", "finite"),
        ({"class": "urgent"}, "class", "'interactive', 'standard' or 'batch'"),
        ({"expires": "2030-01-31T00:00:00"}, "expires", "timezone"),
        ({"expires": "2030-01-31"}, "expires", "timezone"),
        ({"expires": datetime(2030, 1, 31)}, "expires", "timezone"),  # noqa: DTZ001  the fault that is told
        ({"expires": "soon"}, "expires", "datetime"),
        ({"name": "a b"}, "name", "A-Z"),
        ({"key": KEY}, "key", "not permitted"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(fields: dict[str, Any], place: str, told: str) -> None:
    """Somebody will write the key itself where its digest belongs."""
    with pytest.raises(ValidationError) as caught:
        setting(**fields)
    error = caught.value

    assert [fault["loc"][0] for fault in error.errors()] == [place]
    assert told in str(error)
    assert KEY not in str(error)
    assert digest_of(KEY).removeprefix("sha256:")[:-1] not in str(error).lower()


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([setting(), setting(OTHER), setting()], "entries 0 and 2 have the same digest"),
        ([setting(), setting(KEY, "other")], "entries 0 and 1 have the same digest"),
        (
            [setting(OTHER, "other"), setting(), setting("third", weight=2)],
            "entries 1 and 2 are of one tenant and have different weights",
        ),
    ],
)
def test_keys_that_disagree_are_told_by_their_places(entries: list[KeySettings], told: str) -> None:
    """By the validator and by the key ring; neither shows a digest or who the tenants are."""
    for use in (checked, KeyRing):
        with pytest.raises(ValueError, match=told) as caught:
            use(entries)
        assert digest_of(KEY) not in str(caught.value)
        assert "acme" not in str(caught.value)


def test_keys_of_one_tenant_may_differ_in_class_and_end() -> None:
    """A tenant may have a key for its night runs."""
    night = setting(OTHER, expires=NOW + SECOND, **{"class": "batch"})
    keys = checked([setting(weight=2), night.model_copy(update={"weight": 2.0})])

    assert [each.request_class for each in keys] == [RequestClass.INTERACTIVE, RequestClass.BATCH]


def test_the_class_can_be_given_by_its_name_in_the_code() -> None:
    """As well as by its name in the file."""
    given_so = setting(request_class="batch")
    assert given_so == setting(**{"class": "batch"})
    assert given_so.model_dump(mode="json", by_alias=True)["class"] == "batch"


def test_the_door_is_open_only_where_no_keys_are_configured() -> None:
    """That all of them have expired opens it to nobody."""
    assert door([]).identify(None, None).tenant == NOBODY
    assert refusal(door([setting(expires="2020-01-01T00:00:00Z")]), None) is REFUSED
    assert refusal(KeyRing([]), f"Bearer {KEY}") is REFUSED


@given(authorization=st.none() | st.text(), api_key=st.none() | st.text())
def test_an_open_door_refuses_nobody(authorization: str | None, api_key: str | None) -> None:
    """Whatever is in the headers, it may have any class and shares the engine's cache."""
    identity = OpenDoor().identify(authorization, api_key)
    expected = Identity(tenant_of(authorization, api_key), 1.0, RequestClass.INTERACTIVE, None)
    assert identity == expected


def test_without_configured_keys_a_tenant_is_a_digest_of_its_key() -> None:
    """One for each key, which cannot be read from it; nobody's without a key."""
    one, other = tenant_of("Bearer sk-one"), tenant_of("Bearer sk-other")

    assert one == tenant_of("bearer  sk-one ") == tenant_of(None, "sk-one")
    assert len({one, other, NOBODY}) == 3
    assert len(one) == 32
    assert "sk" not in one
    for nothing in (None, "", "Bearer", "Bearer ", "Basic c2stb25l"):
        assert tenant_of(nothing) == NOBODY


def test_the_sixty_first_bad_key_in_a_minute_is_one_too_many() -> None:
    """From its address; others are not touched, and a new minute begins with a new bad key."""
    limit = BadKeyLimit()
    for second in range(60):
        assert limit.retry_after_s("a", second / 2) is None
        limit.refused("a", second / 2)

    assert limit.retry_after_s("a", 30) == 30
    assert limit.retry_after_s("a", 59.5) == 0.5
    assert limit.retry_after_s("b", 30) is None


def test_an_address_recovers_when_its_minute_is_over() -> None:
    """However many bad keys it sent in it, and then it has as many as at first."""
    limit = BadKeyLimit(most=2)
    for _ in range(1000):
        limit.refused("a", 5)
    assert limit.retry_after_s("a", 64) == 1
    assert limit.retry_after_s("a", 65) is None
    limit.refused("a", 70)
    assert limit.retry_after_s("a", 71) is None
    limit.refused("a", 71)
    assert limit.retry_after_s("a", 71) == 59


def test_bad_keys_that_are_minutes_apart_are_no_flood() -> None:
    """A client with a wrong key that tries now and then is told 401 for ever."""
    limit = BadKeyLimit(most=2)
    for minute in range(10):
        assert limit.retry_after_s("a", minute * 60) is None
        limit.refused("a", minute * 60)


def test_ten_thousand_addresses_are_remembered() -> None:
    """The one whose minute began first is forgotten for the next, however many there are."""
    limit = BadKeyLimit(most=1)
    for number in range(12_000):
        limit.refused(str(number), number / 1000)
    remembered = [n for n in range(12_000) if limit.retry_after_s(str(n), 12) is not None]

    assert remembered == list(range(2_000, 12_000))
    assert len(limit) == 10_000


def test_an_address_whose_minute_began_anew_is_not_the_oldest() -> None:
    """It keeps its count when room is made."""
    limit = BadKeyLimit(most=1, most_addresses=2)
    for address, now_s in (("a", 0.0), ("b", 10.0), ("a", 60.0), ("c", 61.0)):
        limit.refused(address, now_s)

    assert limit.retry_after_s("a", 61) == 59
    assert limit.retry_after_s("b", 61) is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from([0.0, 1.0, 20.0, 59.0, 60.0, 61.0])), max_size=60
    )
)
def test_an_address_waits_exactly_while_its_minute_has_too_many(steps: list[tuple[str, float]]) -> None:
    """Beside a plain account of each address's minutes; memory stays within its bound."""
    limit, now_s = BadKeyLimit(most=3, most_addresses=5), 0.0
    minutes: dict[str, list[float]] = {}
    for address, pause_s in steps:
        now_s += pause_s
        minute = minutes.get(address, [])
        if not minute or now_s >= minute[0] + 60:
            minute = []
        expected = minute[0] + 60 - now_s if len(minute) >= 3 else None
        assert limit.retry_after_s(address, now_s) == expected
        limit.refused(address, now_s)
        minutes[address] = [*minute, now_s]
        assert len(limit) <= 5


def test_new_keys_are_long_random_and_sendable() -> None:
    """256 bits after a prefix that tells whose keys they are."""
    keys = {new_key() for _ in range(100)}

    assert len(keys) == 100
    assert all(re.fullmatch(r"sk-muster-[A-Za-z0-9_-]{43}", each) for each in keys)
    assert all(is_sendable(each) for each in keys)


def test_a_digest_is_the_sha256_of_the_key() -> None:
    """As `printf %s abc | sha256sum` has it (FIPS 180-2, appendix B.1)."""
    assert digest_of("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.text(max_size=600) | st.text(string.ascii_letters, min_size=500, max_size=520))
def test_what_is_sendable_lets_in(key: str) -> None:
    """As a key, in both headers; a key that is not is told when its digest is made, not when it fails."""
    if is_sendable(key):
        keys = ring(setting(key))
        assert keys.identify(f"Bearer {key}", None) == keys.identify(None, key)
    else:
        assert not key or len(key) > 512 or not key.isascii() or re.search(r"[\x00-\x20\x7f]", key)
