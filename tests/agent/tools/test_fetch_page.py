"""Fetching from real servers on this machine, over HTTP and HTTPS."""

import asyncio
import gzip
import socket
import ssl
import sys
import tracemalloc
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool
from pydantic import ValidationError

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.fetch import FetchSettings, open_fetch
from muster_agent.tools.fetch.addresses import IPAddress
from muster_agent.tools.fetch.client import PageClient, system_addresses
from muster_agent.tools.fetch.dialler import PinnedDialler
from muster_agent.tools.fetch.urls import parse_url

HERE = ["127.0.0.1/32"]
HOST = "pages.example.org"
REFUSED = r"^This address may not be fetched\.$"
FAILED = r"^The page could not be fetched\.$"

SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)

Resolve = Callable[[str, int], Sequence[IPAddress]]

_dialled: list[Any] = []


def _note_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        _dialled.append(arguments[1][0])


sys.addaudithook(_note_connections)  # the interpreter's own report of every connection attempt


@pytest.fixture
def dialled() -> list[Any]:
    """The addresses to which this process has tried to connect since the test began."""
    _dialled.clear()
    return _dialled


@dataclass
class Names:
    """A resolver: each name has a list of answers, which are given one after another; the last one stays.

    Attributes:
        asked: The names that were resolved, in their order.
    """

    answers: dict[str, list[list[str]]] = field(default_factory=lambda: {HOST: [["127.0.0.1"]]})
    asked: list[str] = field(default_factory=list)

    def __call__(self, host: str, port: int) -> Sequence[IPAddress]:
        """Resolve `host`."""
        assert port
        self.asked.append(host)
        answers = self.answers.get(host.removesuffix("."))
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [ip_address(text) for text in (answers.pop(0) if len(answers) > 1 else answers[0])]


@dataclass
class Site:
    """A web server.

    Attributes:
        port: On 127.0.0.1.
        pages: What it sends for a path, head included; `None` keeps the client waiting.
        heads: What it was sent, in lower case.
        left: Set when a client that was kept waiting is gone.
        server_names: The names that TLS clients asked for.
    """

    port: int = 0
    pages: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])
    heads: list[str] = field(default_factory=list[str])
    left: asyncio.Event = field(default_factory=asyncio.Event)
    server_names: list[str | None] = field(default_factory=list[str | None])

    def url(self, path: str, scheme: str = "http", host: str = HOST) -> str:
        """The address of `path`."""
        return f"{scheme}://{host}:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head.lower())
            page = self.pages.get(head.split(" ")[1], b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            if page is None:
                await reader.read()
                self.left.set()
            else:
                writer.write(page)
                await writer.drain()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncGenerator[Site]:
    """A site that answers on a free port."""
    site = Site()
    async with await asyncio.start_server(site.answer, "127.0.0.1", 0, ssl=tls) as server:
        site.port = server.sockets[0].getsockname()[1]
        yield site


@pytest.fixture
async def site() -> AsyncGenerator[Site]:
    """A site over HTTP."""
    async with serving() as site:
        yield site


@dataclass
class Certificates:
    """An authority, and a server's certificate for `HOST` that it signed.

    Attributes:
        authority: The authority's certificate, in PEM.
        server: The server's key and certificate, in PEM.
    """

    authority: Path
    server: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of a private authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    now = datetime.now(UTC)

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(authority_name, subject, public, x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    authority = (
        certificate(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(SIGNS_CERTIFICATES, critical=True)
    )
    server = (
        certificate(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(pem))
    (folder / "server.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + server.sign(authority_key, hashes.SHA256()).public_bytes(pem)
    )
    return Certificates(folder / "authority.pem", folder / "server.pem")


@pytest.fixture
async def secure_site(certificates: Certificates) -> AsyncGenerator[Site]:
    """A site over HTTPS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server)
    async with serving(tls) as site:
        tls.sni_callback = lambda _connection, name, _context: site.server_names.append(name)
        yield site


def page(
    body: bytes | str = "hello", content_type: str = "text/plain", status: str = "200 OK", **headers: str
) -> bytes:
    """An answer."""
    sent = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", f"content-length: {len(sent)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + sent


def redirect(*locations: str, status: str = "302 Found") -> bytes:
    """An answer that leads elsewhere."""
    lines = [f"HTTP/1.1 {status}", "content-length: 0", *(f"location: {to}" for to in locations)]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def fetching(site: Site, resolve: Resolve | None = None, **settings: Any) -> AsyncGenerator[BaseTool]:
    """The tool; unless told otherwise, it may fetch the pages of `site`, which lie on this machine."""
    values: dict[str, Any] = {
        "allow": ["*.example.org"],
        "allow_networks": HERE,
        "ports": [site.port],
        "timeout_s": 60,
    }
    async with open_fetch(FetchSettings(**values | settings), resolve=resolve or Names()) as (tool,):
        yield tool


async def fetch(site: Site, url: str, resolve: Resolve | None = None, **settings: Any) -> str:
    """What the tool answers for `url`."""
    async with fetching(site, resolve, **settings) as tool:
        return await tool.ainvoke({"url": url})


def content(text: str) -> str:
    """What stands between the frame's lines."""
    lines = text.split("\n")
    assert lines[2].startswith("BEGIN ")
    assert lines[-1] == lines[2].replace("BEGIN", "END")
    return "\n".join(lines[3:-1])


async def test_a_page_is_given_as_text(site: Site) -> None:
    """The model is given the page's address, then its text, framed as the untrusted content of others."""
    site.pages["/a?b"] = page("<nav>Menu</nav><h1>News</h1><p>All is <b>well</b>.", "text/html")

    text = await fetch(site, site.url("/a?b#c"))

    first, second, *_ = text.split("\n")
    assert first == f"Page: http://{HOST}:{site.port}/a?b"
    assert second.startswith("Untrusted content of others")
    assert content(text) == "# News\n\nAll is well."


async def test_the_frame_cannot_be_forged(site: Site) -> None:
    """The frame's number is new for each fetch, so that no page knows how to end it."""
    site.pages["/"] = page("hello")

    async with fetching(site) as tool:
        frames = [(await tool.ainvoke({"url": site.url("/")})).split("\n")[-1] for _ in range(2)]

    assert frames[0] != frames[1]


async def test_the_tool_says_what_it_is(site: Site) -> None:
    """The tool reads only, its results are untrusted, and its one argument is described."""
    async with fetching(site) as tool:
        assert tool.name == "fetch_page"
        assert tool.metadata == {"changes_world": False, "untrusted": True}
        assert set(tool.args) == {"url"}
        assert "https://example.org/page" in tool.args["url"]["description"]


async def test_nothing_personal_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither proxies nor credentials of the environment are used, and a cookie is not sent back."""
    (tmp_path / "netrc").write_text(
        f"default login me password secret\nmachine {HOST} login me password secret\n"
    )
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    site.pages["/"] = page(b"", status="302 Found", location="/next", set_cookie="id=1; path=/")
    site.pages["/next"] = page("here")

    assert content(await fetch(site, site.url("/"))) == "here"
    for head, path in zip(site.heads, ["/", "/next"], strict=True):
        lines = head.split("\r\n")
        assert lines[0] == f"get {path} http/1.1"
        assert f"host: {HOST}:{site.port}" in lines
        names = {line.partition(":")[0] for line in lines[1:] if line}
        assert names == {"host", "user-agent", "accept", "accept-encoding", "connection"}


async def test_a_name_is_resolved_once_for_each_hop(site: Site, dialled: list[Any]) -> None:
    """The address that was checked is the one that is dialled: what the name resolves to later changes nothing."""
    names = Names({HOST: [["127.0.0.1"], ["127.0.0.1"], ["10.0.0.1"]]})
    site.pages["/"] = redirect("/next")
    site.pages["/next"] = page("here")

    async with fetching(site, names) as tool:
        assert content(await tool.ainvoke({"url": site.url("/")})) == "here"
        assert names.asked == [f"{HOST}."] * 2
        with pytest.raises(ToolComplaint, match=REFUSED):
            await tool.ainvoke({"url": site.url("/")})

    assert dialled == ["127.0.0.1"] * 2


async def test_only_the_checked_host_is_dialled(site: Site, dialled: list[Any]) -> None:
    """Under the HTTP client, no host and no port but those that were checked can be reached."""
    dialler = PinnedDialler(HOST, site.port, [IPv4Address("127.0.0.1")], timeout_s=60)

    for host, port in (("127.0.0.1", site.port), (HOST, site.port + 1)):
        with pytest.raises(httpcore2.ConnectError):
            await dialler.connect_tcp(host, port)
    assert dialled == []

    await (await dialler.connect_tcp(HOST, site.port)).aclose()
    assert dialled == ["127.0.0.1"]


async def test_a_redirect_is_resolved_and_checked_anew(site: Site, dialled: list[Any]) -> None:
    """A name that turns private between two hops of one fetch is refused at the second."""
    names = Names({HOST: [["127.0.0.1"], ["10.0.0.1"]]})
    site.pages["/"] = redirect("/next")

    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/"), names)

    assert dialled == ["127.0.0.1"]


@pytest.mark.parametrize(
    "answers",
    [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["8.8.8.8", "::1"], ["127.0.0.1", "fe80::1%lo"]],
)
async def test_one_bad_answer_refuses_all(site: Site, dialled: list[Any], answers: list[str]) -> None:
    """A name with one address that may not be dialled is not dialled at all."""
    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/"), Names({HOST: [answers]}))

    assert dialled == []


async def test_the_next_address_is_tried(site: Site) -> None:
    """Of several good addresses, one that does not answer is passed over."""
    site.pages["/"] = page("here")
    names = Names({HOST: [["::1", "127.0.0.1"]]})

    text = await fetch(site, site.url("/"), names, allow_networks=[*HERE, "::1/128"])

    assert content(text) == "here"


@pytest.mark.parametrize(
    "answer",
    [
        *("10.1.2.3", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.1", "224.0.0.1", "::1", "fd00::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "168.63.129.16"),
    ],
)
async def test_private_addresses_are_not_dialled(site: Site, dialled: list[Any], answer: str) -> None:
    """Where a name leads into a network that is not permitted, nothing is dialled."""
    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/"), Names({HOST: [[answer]]}), allow_networks=[])

    assert dialled == []


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:7f00:1]", "[64:ff9b::a9fe:a9fe]"),
        *("2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "localhost", "kubernetes.default.svc"),
        *("kubernetes", "kubernetes.default", "kubernetes.default.", "kube-dns.kube-system"),
        *("vllm", "db.team.svc.cluster.local", "metadata.google.internal", "pages.example.org:1"),
    ],
)
async def test_what_is_refused_reads_the_same(site: Site, dialled: list[Any], host: str) -> None:
    """Under a star, all that is not public is refused in the same words, without a resolution or a connection."""
    names = Names()

    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, f"http://{host}/", names, allow=["*"], ports=[80])

    assert names.asked == []
    assert dialled == []


async def test_a_star_does_not_open_private_networks(site: Site) -> None:
    """A permitted network is for the hosts that are listed; a name that only the star covers stays out."""
    site.pages["/"] = page("here")

    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/"), allow=["*"])
    assert content(await fetch(site, site.url("/"), allow=["*", HOST])) == "here"


async def test_an_internal_name_may_be_listed(site: Site, dialled: list[Any]) -> None:
    """A name that looks internal is fetched if it is listed itself and its address is permitted, not otherwise."""
    names = Names({"wiki": [["127.0.0.1"]], "wiki.team.svc": [["127.0.0.1"]]})
    site.pages["/"] = page("here")

    assert content(await fetch(site, site.url("/", host="wiki"), names, allow=["wiki"])) == "here"
    assert names.asked == ["wiki"]
    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/", host="wiki"), names, allow=["wiki"], allow_networks=[])
    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/", host="wiki.team.svc"), names, allow=["*.team.svc"])
    assert dialled == ["127.0.0.1"]


async def test_an_address_may_be_listed(site: Site) -> None:
    """A literal address is fetched if it is listed, and is not resolved."""
    names = Names()
    site.pages["/"] = page("here")

    assert content(await fetch(site, site.url("/", host="127.0.0.1"), names, allow=["127.0.0.1"])) == "here"
    assert names.asked == []


async def test_a_host_that_is_not_listed_is_named(site: Site) -> None:
    """The model may know that the host it wrote is not on the list; it is told no other."""
    names = Names({"example.net": [["127.0.0.1"]]})

    with pytest.raises(ToolComplaint, match=r"^example\.net is not among the sites that may be fetched\.$"):
        await fetch(site, site.url("/", host="example.net"), names)

    assert names.asked == []


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://127.0.0.1:{port}/",
            "http://2130706433:{port}/",
            "http://169.254.169.254/",
            "http://[::1]:{port}/",
        ),
        *(
            "http://example.net:{port}/",
            "http://pages.example.org/",
            "file:///etc/passwd",
            "http://me@a.example.org/",
        ),
        *(
            "http://private.example.org:{port}/",
            "//localhost:{port}/",
            "\\\\127.0.0.1\\",
            "http://a.svc:{port}/",
        ),
    ],
)
async def test_redirects_are_checked_like_the_first_address(
    site: Site, dialled: list[Any], location: str
) -> None:
    """A redirect leads nowhere that the model could not have gone itself, and is refused in the same words."""
    names = Names(
        {HOST: [["127.0.0.1"]], "private.example.org": [["10.0.0.1"]], "example.net": [["127.0.0.1"]]}
    )
    site.pages["/"] = redirect(location.format(port=site.port))

    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(site, site.url("/"), names)

    assert dialled == ["127.0.0.1"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Same", "308 Same"])
async def test_redirects_are_followed(site: Site, status: str) -> None:
    """Every kind of redirect leads to the other page, whose address is the one that is told."""
    names = Names({HOST: [["127.0.0.1"]], "other.example.org": [["127.0.0.1"]]})
    site.pages["/"] = redirect(site.url("/next", host="other.example.org"), status=status)
    site.pages["/next"] = page("here")

    text = await fetch(site, site.url("/"), names)

    assert text.startswith(f"Page: http://other.example.org:{site.port}/next\n")
    assert content(text) == "here"
    assert f"host: other.example.org:{site.port}\r\n" in site.heads[1]


async def test_redirects_are_counted(site: Site) -> None:
    """As many redirects are followed as may be, and not one more."""
    site.pages |= {f"/{number}": redirect(f"/{number + 1}") for number in range(3)}
    site.pages["/3"] = page("here")

    assert content(await fetch(site, site.url("/0"), most_redirects=3)) == "here"
    site.heads.clear()
    with pytest.raises(ToolComplaint, match="redirects too often"):
        await fetch(site, site.url("/0"), most_redirects=2)
    assert len(site.heads) == 3


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (redirect(), r"^The page answered with HTTP status 302\.$"),
        (redirect("/a", "/b"), FAILED),
        (page(status="404 Not Found"), r"^The page answered with HTTP status 404\.$"),
        (page(status="500 Broken"), r"^The page answered with HTTP status 500\.$"),
        (page(status="304 Not Modified"), r"^The page answered with HTTP status 304\.$"),
        (page(status="206 Partial Content"), r"^The page answered with HTTP status 206\.$"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", FAILED),
        (b"", FAILED),
        (b"SSH-2.0-OpenSSH_9.6\r\n", FAILED),
        (b"HTTP/1.1 200 OK\r\n" + b"x-filler: y\r\n" * 20_000 + b"\r\n", FAILED),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 99\r\n\r\nbroken off", FAILED),
        (page(b"\x1f\x8bno gzip", content_encoding="gzip"), FAILED),
        (page(gzip.compress(b"broken off", mtime=0)[:-9], content_encoding="gzip"), FAILED),
        (page(zlib.compress(b"deflate"), content_encoding="deflate"), FAILED),
        (
            page(gzip.compress(gzip.compress(b"stacked", mtime=0), mtime=0), content_encoding="gzip, gzip"),
            FAILED,
        ),
        (page(content_type="image/png"), r"^This page is no text, so it cannot be read\.$"),
        (page(content_type="application/octet-stream"), r"^This page is no text, so it cannot be read\.$"),
        (page(content_type="text"), r"^This page is no text, so it cannot be read\.$"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            r"^This page is no text, so it cannot be read\.$",
        ),
    ],
)
async def test_what_is_no_page_is_told(site: Site, answer: bytes, told: str) -> None:
    """An answer that is no readable page is told in one sentence, in which nothing of the server's stands."""
    site.pages["/"] = answer

    with pytest.raises(ToolComplaint, match=told):
        await fetch(site, site.url("/"))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (page('{"a": 1}', "application/json"), '{"a": 1}'),
        (page('{"a": 1}', "Application/Problem+JSON; charset=UTF-8"), '{"a": 1}'),
        (page("<a>b</a>", "application/atom+xml"), "<a>b</a>"),
        (page("a,b\r\n1,2\r\n", "text/csv"), "a,b\n1,2"),
        (page("<html><body>x</body></html>", "application/xhtml+xml"), "x"),
        (page("Z\xfcrich".encode("latin-1"), "text/plain; charset=ISO-8859-1"), "Z\xfcrich"),
        (page(gzip.compress(b"packed", mtime=0), content_encoding="gzip"), "packed"),
        (page("plain", content_encoding="identity"), "plain"),
        (page("", content_encoding="gzip"), "(The page has no text.)"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "hi",
        ),
        (b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end", "until the end"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + page("late"), "late"),
    ],
)
async def test_text_of_all_kinds_is_read(site: Site, answer: bytes, text: str) -> None:
    """Text is read whatever its kind, charset, compression and framing."""
    site.pages["/"] = answer

    assert content(await fetch(site, site.url("/"))) == text


async def test_a_long_page_is_cut(site: Site) -> None:
    """The model is given the first characters, and is told that there are more."""
    site.pages["/"] = page("a" * 101)

    text = content(await fetch(site, site.url("/"), most_characters=100))

    assert text == "a" * 100 + "\n[The page is longer; the rest is left out.]"
    assert "longer" not in content(await fetch(site, site.url("/"), most_characters=101))


async def test_a_bomb_is_not_unpacked(site: Site) -> None:
    """A small answer that unpacks to a large one takes no more memory than may be read of it."""
    site.pages["/"] = page(gzip.compress(b"a" * 100_000_000, 1, mtime=0), content_encoding="gzip")

    tracemalloc.start()
    try:
        text = content(await fetch(site, site.url("/"), most_bytes=1_000_000))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert text.endswith("[The page is longer; the rest is left out.]")
    assert peak_bytes < 20_000_000


@pytest.mark.parametrize(
    "answer",
    [
        page(b"a" * 3000),
        page(gzip.compress(b"a", mtime=0) + b"b" * 3000, content_encoding="gzip"),
    ],
    ids=["large", "trailing"],
)
async def test_a_large_page_is_not_read_to_its_end(site: Site, answer: bytes) -> None:
    """Reading stops at the bound, as sent or as decompressed, and the model is told."""
    site.pages["/"] = answer

    text = content(await fetch(site, site.url("/"), most_bytes=1000, most_characters=5000))

    assert len(text) < 1100
    assert text.endswith("[The page is longer; the rest is left out.]")


async def test_a_page_that_does_not_come_is_given_up(site: Site) -> None:
    """A server that keeps its client waiting is left when the time is over, and that is all that is told."""
    site.pages["/"] = None

    with pytest.raises(ToolComplaint, match=FAILED):
        await fetch(site, site.url("/"), timeout_s=0.2)


async def test_a_cancelled_fetch_hangs_up(site: Site) -> None:
    """Cancelling the call closes the connection."""
    site.pages["/"] = None

    async with fetching(site) as tool, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(tool.ainvoke({"url": site.url("/")}))
        while not site.heads:
            await asyncio.sleep(0)
        call.cancel()
        await site.left.wait()


@pytest.mark.parametrize("answers", [{}, {HOST: [[]]}])
async def test_an_unknown_name_is_told_as_a_failure(site: Site, answers: dict[str, list[list[str]]]) -> None:
    """A name without an address is no refusal: nothing was there to refuse."""
    with pytest.raises(ToolComplaint, match=FAILED):
        await fetch(site, site.url("/"), Names(answers))


def test_the_system_resolves_names() -> None:
    """Unless told otherwise, names are looked up as everything on the machine does."""
    addresses = system_addresses("localhost", 80)

    assert addresses
    assert all(address.is_loopback for address in addresses)


async def test_a_closed_port_is_told_as_a_failure(site: Site) -> None:
    """Where nothing listens, the model is told no more than that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    with pytest.raises(ToolComplaint, match=FAILED):
        await fetch(site, f"http://{HOST}:{port}/", ports=[port])


async def test_a_secure_page_is_fetched(secure_site: Site, certificates: Certificates) -> None:
    """Over TLS the checked address is dialled, and the host's name is what server and certificate are asked for."""
    names = Names({HOST: [["127.0.0.1"], ["10.0.0.1"]]})
    secure_site.pages["/"] = page("secret")

    text = await fetch(secure_site, secure_site.url("/", "https"), names, ca_file=certificates.authority)

    assert content(text) == "secret"
    assert names.asked == [f"{HOST}."]
    assert secure_site.server_names == [HOST]


async def test_a_certificate_of_another_host_is_no_page(
    secure_site: Site, certificates: Certificates
) -> None:
    """A server that cannot show a certificate for the host is not asked for the page."""
    names = Names({"other.example.org": [["127.0.0.1"]]})
    url = secure_site.url("/", "https", "other.example.org")

    with pytest.raises(ToolComplaint, match=FAILED):
        await fetch(secure_site, url, names, ca_file=certificates.authority)

    assert secure_site.heads == []


async def test_an_unknown_authority_is_no_page(
    secure_site: Site, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate of an authority that nobody named is not accepted, not even where the environment does."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))

    with pytest.raises(ToolComplaint, match=FAILED):
        await fetch(secure_site, secure_site.url("/", "https"))

    assert secure_site.heads == []


async def test_a_secure_page_may_not_lead_to_an_insecure_one(
    secure_site: Site, site: Site, certificates: Certificates
) -> None:
    """A redirect from https to http is refused, also to the same host."""
    secure_site.pages["/"] = redirect(site.url("/"))
    ports = [site.port, secure_site.port]

    with pytest.raises(ToolComplaint, match=REFUSED):
        await fetch(secure_site, secure_site.url("/", "https"), ports=ports, ca_file=certificates.authority)

    assert site.heads == []


async def test_a_secure_literal_address_is_checked(secure_site: Site, certificates: Certificates) -> None:
    """A certificate for a name is none for the address behind it."""
    with pytest.raises(ToolComplaint, match=FAILED):
        await fetch(
            secure_site,
            secure_site.url("/", "https", "127.0.0.1"),
            allow=["127.0.0.1"],
            ca_file=certificates.authority,
        )

    assert secure_site.heads == []


@pytest.mark.parametrize("contents", [None, b"", b"no certificate"])
async def test_an_unreadable_authority_is_an_error_at_the_start(
    site: Site, tmp_path: Path, contents: bytes | None
) -> None:
    """A file of authorities that cannot be read stops the start, and the operator is told which setting it is."""
    if contents is not None:
        (tmp_path / "ca.pem").write_bytes(contents)

    with pytest.raises(ToolkitError, match="ca_file"):
        await fetch(site, site.url("/"), ca_file=tmp_path / "ca.pem")


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {},
            {"allow": []},
            {"allow": ["http://example.org"]},
            {"allow": ["127.1"]},
            {"allow": ["*"], "alow": []},
        ),
        *(
            {"allow": ["*"], "ports": [0]},
            {"allow": ["*"], "timeout_s": 0},
            {"allow": ["*"], "most_redirects": -1},
        ),
        *({"allow": ["*"], "allow_networks": ["10.0.0.1/8"]}, {"allow": ["*"], "timeout_s": float("inf")}),
    ],
)
def test_wrong_settings_are_errors(settings: dict[str, Any]) -> None:
    """Without an allow-list there is no tool, and a value that cannot be meant is an error."""
    with pytest.raises(ValidationError):
        FetchSettings(**settings)


def test_the_defaults_are_strict() -> None:
    """What is not set permits the web's own ports and no private network."""
    settings = FetchSettings(allow=["*"])

    assert settings.ports == [80, 443]
    assert settings.allow_networks == []


PRIVATE = [
    IPv4Network(text)
    for text in (
        "10.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "0.0.0.0/8",
    )
]
WRITINGS = (str, "0{:o}".format, "0x{:x}".format, "0X{:X}".format, "000{:o}".format, "0x000{:x}".format)
WIDE = {character: chr(ord(character) + 0xFEE0) for character in "0123456789abcdefxABCDEFX."}
"""Full-width forms, which UTS #46 maps to ASCII."""
NARROW = str.maketrans({wide: narrow for narrow, wide in WIDE.items()} | {"\u3002": "."})


@st.composite
def spellings(draw: st.DrawFn) -> tuple[IPv4Address, str]:
    """A private address, and one of the ways in which `inet_aton` reads it."""
    network = draw(st.sampled_from(PRIVATE))
    address = network[draw(st.integers(0, network.num_addresses - 1))]
    count = draw(st.integers(1, 4))
    parts = [*address.packed[: count - 1], int.from_bytes(address.packed[count - 1 :])]
    text = ".".join(draw(st.sampled_from(WRITINGS))(part) for part in parts)
    if draw(st.booleans()):
        text = "".join(draw(st.sampled_from([letter, WIDE[letter]])) for letter in text)
    return address, text + draw(st.sampled_from(["", ".", "\u3002"]))


def as_the_system_would(host: str, port: int) -> Sequence[IPAddress]:
    """A resolver that takes every spelling of an IPv4 address, as `getaddrinfo` does."""
    assert port
    return [IPv4Address(socket.inet_aton(host.removesuffix(".")))]


@given(spellings())
async def test_no_spelling_of_a_private_address_is_dialled(spelling: tuple[IPv4Address, str]) -> None:
    """However a private address is written, it is refused, and no connection is attempted."""
    address, text = spelling
    assert as_the_system_would(text.translate(NARROW), 80) == [address]
    client = PageClient(
        FetchSettings(allow=["*"]), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), as_the_system_would
    )
    _dialled.clear()

    with pytest.raises(ToolComplaint, match=REFUSED):
        await client.fetch(parse_url(f"http://{text}/"))

    assert _dialled == []
