"""Keys: who is let in, for whom a request counts, and what only the proxy says to an engine."""

import asyncio
from typing import Any

import pytest
from starlette.routing import Route

from muster_batching.tickets import NOBODY
from muster_observability import server
from muster_proxy.app import KEYED_PATHS, check_policies, create_app
from muster_proxy.keys import Identity, KeySettings, digest_of
from muster_proxy.protocol import HttpServer
from muster_proxy.settings import ProxySettings, UpstreamSettings
from muster_proxy.testing import FakeVllm, Reply
from muster_proxy.wire import Kind
from tests.proxy.asking import body, metric, post, until_waiting
from tests.proxy.conftest import Proxied

ADA, NIGHT = "sk-muster-ada-0123456789", "sk-muster-night-0123456789"
KEYS = [
    KeySettings(digest=digest_of(ADA), tenant="ada"),
    KeySettings(digest=digest_of(NIGHT), tenant="night", request_class="batch"),  # type: ignore[arg-type]
]


def bearer(key: str) -> dict[str, str]:
    """The header that brings a key."""
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", sorted(KEYED_PATHS))
async def test_no_route_is_open_where_there_are_keys(engine: FakeVllm, proxied: Proxied, path: str) -> None:
    """Without a key, with a wrong one and with a digest for one: 401 before anything of the request is read."""
    method = "POST" if path in {kind.value for kind in Kind} else "GET"
    async with proxied(engine.url, keys=KEYS) as client:
        answers = [
            await client.request(method, path, content=b"{not json", headers=headers)
            for headers in ({}, bearer("sk-wrong"), bearer(KEYS[0].digest), bearer(KEYS[0].digest[7:]))
        ]

    assert {each.status_code for each in answers} == {401}
    assert {each.json()["error"]["code"] for each in answers} == {"invalid_api_key"}
    assert all(each.headers["x-request-id"] for each in answers)
    assert not engine.requests


async def test_either_header_brings_a_key(engine: FakeVllm, proxied: Proxied) -> None:
    """OpenAI's clients send the one, Anthropic's the other."""
    async with proxied(engine.url, keys=KEYS) as client:
        assert (await post(client, bearer(ADA))).status_code == 200
        assert (await post(client, {"x-api-key": ADA})).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(ADA))).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
    assert not {"authorization", "x-api-key"} & set(engine.requests[0].headers)


async def test_wrong_keys_without_end_are_told_to_wait_and_good_ones_pass(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """The sixty-first in a minute from one address gets 429."""
    async with proxied(engine.url, keys=KEYS) as client:
        answers = [await post(client, bearer("sk-wrong")) for _ in range(61)]
        good = await post(client, bearer(ADA))

    assert [each.status_code for each in answers] == [401] * 60 + [429]
    assert answers[60].json()["error"]["code"] == "too_many_bad_keys"
    assert int(answers[60].headers["retry-after"]) <= 60
    assert good.status_code == 200


async def test_a_key_is_told_whose_it_is(engine: FakeVllm, proxied: Proxied) -> None:
    """Its tenant, its name and its class, by either header; nothing of it counts as a request to an engine."""
    named = KEYS[1].model_copy(update={"name": "nightly"})
    async with proxied(engine.url, keys=[KEYS[0], named]) as client:
        ada = await client.get("/v1/muster/key", headers=bearer(ADA))
        night = await client.get("/v1/muster/key", headers={"x-api-key": NIGHT})

        assert ada.json() == {"object": "muster.key", "tenant": "ada", "name": None, "class": "interactive"}
        assert night.json() == {
            "object": "muster.key",
            "tenant": "night",
            "name": "nightly",
            "class": "batch",
        }
        assert ada.headers["cache-control"] == "no-store"
        assert await metric(client, 'muster_requests_total{outcome="completed"}') == 0
    assert not engine.requests


@pytest.mark.parametrize("headers", [{}, bearer("sk-any"), {"x-api-key": "sk-any"}])
async def test_without_configured_keys_every_key_is_nobodys(
    engine: FakeVllm, proxied: Proxied, headers: dict[str, str]
) -> None:
    """What is sent for a key then proves nothing, and no digest of it is given back."""
    async with proxied(engine.url) as client:
        told = (await client.get("/v1/muster/key", headers=headers)).json()

    assert told == {"object": "muster.key", "tenant": NOBODY, "name": None, "class": "interactive"}


async def test_what_is_told_of_a_key_is_neither_it_nor_its_digest(engine: FakeVllm, proxied: Proxied) -> None:
    """Nor the salt that keeps its tenant's prefixes apart."""
    async with proxied(engine.url, keys=KEYS) as client:
        answer = await client.get("/v1/muster/key", headers=bearer(ADA))
        await post(client, bearer(ADA))

    salt = engine.requests[0].body["cache_salt"]
    told = f"{answer.headers}{answer.text}"
    assert [each for each in (ADA, KEYS[0].digest[7:], salt) if each in told] == []


class _Broken:
    """A door whose keys cannot be read."""

    def identify(self, authorization: str | None, api_key: str | None) -> Identity:
        """Fail as a database that is away does."""
        raise OSError(f"no connection for {authorization} {api_key}")


async def test_a_key_that_cannot_be_checked_is_not_let_in(
    engine: FakeVllm, proxied: Proxied, capfd: pytest.CaptureFixture[str]
) -> None:
    """503, never a pass; and the key is in no log."""
    async with proxied(engine.url, door=_Broken()) as client:
        answer = await post(client, bearer("sk-CANARY"))
        models = await client.get("/v1/models", headers=bearer("sk-CANARY"))
        key = await client.get("/v1/muster/key", headers=bearer("sk-CANARY"))

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "authentication_unavailable")
    assert (models.status_code, key.status_code) == (503, 503)
    assert not engine.requests
    assert "CANARY" not in "".join(capfd.readouterr())


async def test_a_route_without_a_policy_does_not_start() -> None:
    """Whoever adds a route says who may ask it."""

    async def endpoint(_request: Any) -> Any:
        """Answer nothing."""

    with pytest.raises(RuntimeError, match="/v1/new"):
        check_policies([Route("/v1/new", endpoint)])


async def test_every_route_of_the_application_has_its_policy(engine: FakeVllm) -> None:
    """The application checks that as it starts."""
    app = create_app(ProxySettings(upstreams=[UpstreamSettings(url=engine.url)]))
    with server.bind(0, "") as listener:
        async with server.serving(app, listener, server.Manner(HttpServer())):
            check_policies(app.framework.router.routes)
            paths = {getattr(route, "path", "") for route in app.framework.router.routes}
            paths = {path.replace(":path}", "}") for path in paths}
    assert paths > KEYED_PATHS


async def test_the_engine_hears_salt_and_priority_from_the_proxy_alone(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """One salt for a tenant, another for the next; the class as a priority; what the client sent is gone."""
    async with proxied(engine.url, keys=KEYS, priorities=True) as client:
        for key, request_class in ((ADA, "interactive"), (ADA, "standard"), (NIGHT, "interactive")):
            headers = {**bearer(key), "x-muster-class": request_class}
            answer = await post(client, headers, cache_salt="mine", priority=-9, request_id="x")
            assert answer.status_code == 200

    sent = [request.body for request in engine.requests]
    salts = [each.pop("cache_salt") for each in sent]
    assert [each.pop("priority") for each in sent] == [0, 1, 2]
    assert sent == [body()] * 3
    assert salts[0] == salts[1] != salts[2]
    assert not {"mine", "ada", "night", KEYS[0].digest} & set(salts)


async def test_an_engine_that_is_not_told_of_salts_is_not(engine: FakeVllm, proxied: Proxied) -> None:
    """Nor of priorities, unless that is set; and without keys there are no tenants to keep apart."""
    async with proxied(engine.url, keys=KEYS, cache_salt=False) as client:
        await post(client, bearer(ADA), cache_salt="mine", priority=3)
    async with proxied(engine.url) as client:
        await post(client, cache_salt="mine")
    assert [request.body for request in engine.requests] == [body(), body()]


@pytest.mark.parametrize(
    "field", ["prompt_embeds", "kv_transfer_params", "chat_template", "lora_path", "allowed_local_media_path"]
)
async def test_fields_that_open_the_engine_are_refused(
    engine: FakeVllm, proxied: Proxied, field: str
) -> None:
    """With their name."""
    async with proxied(engine.url) as client:
        answer = await client.post("/v1/chat/completions", json=body(**{field: "x"}))

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert not engine.requests


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest", "https://example.com/a.png", "file:///etc/passwd", "ftp://a/b"]
)
async def test_an_engine_fetches_nothing_for_a_client(engine: FakeVllm, proxied: Proxied, url: str) -> None:
    """Media comes as data; where the operator allows it, by http, and never as the engine's own files."""
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    async with proxied(engine.url) as client:
        closed = await post(client, messages=[{"role": "user", "content": parts}])
    async with proxied(engine.url, fetch_media=True) as client:
        opened = await post(client, messages=[{"role": "user", "content": parts}])

    assert closed.status_code == 400
    assert opened.status_code == (200 if url.startswith("http") else 400)
    assert len(engine.requests) == (1 if url.startswith("http") else 0)


async def test_tenants_take_turns_by_their_keys(engine: FakeVllm, proxied: Proxied) -> None:
    """Of two that wait, the one that has had less goes first, however many the other has sent."""
    release = asyncio.Event()
    engine.script(Reply(release=release))
    waiting = [("ada-2", ADA), ("ada-3", ADA), ("eve-1", "sk-muster-eve")]
    async with (
        proxied(engine.url, keys=[KEYS[0], _key("eve")], limit=1) as client,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(post(client, bearer(ADA), user="ada-1"))
        await engine.arrived.acquire()
        for number, (name, key) in enumerate(waiting, start=1):
            group.create_task(post(client, bearer(key), user=name))
            await until_waiting(client, number)
        release.set()

    users = [request.body["user"] for request in engine.requests]
    assert users[0] == "ada-1"
    assert users.index("eve-1") < users.index("ada-3")


def _key(name: str) -> KeySettings:
    return KeySettings(digest=digest_of(f"sk-muster-{name}"), tenant=name)
