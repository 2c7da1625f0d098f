"""What an address of the model may be, and what an allow-list says of its host."""

from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.tools.complaints import ToolComplaint
from muster_agent.tools.fetch.complaints import AddressSyntaxError, PageError, RefusedError
from muster_agent.tools.fetch.hosts import Claim, allow_list, literal, looks_internal, plain_host
from muster_agent.tools.fetch.urls import PageUrl, parse_url, redirected

SECURE = PageUrl("https", "example.org", 443, "/a/b?c")
DIGITS = str.maketrans("0123456789", "".join(chr(0xFF10 + digit) for digit in range(10)))
CIRCLED = str.maketrans("123456789", "".join(chr(0x2460 + digit) for digit in range(9)))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://example.org", "https://example.org/"),
        ("HTTPS://EXAMPLE.ORG/A", "https://example.org/A"),
        ("http://example.org:80/", "http://example.org/"),
        ("https://example.org:8443/a/../b", "https://example.org:8443/a/../b"),
        ("https://example.org?q=1&r=a b".replace(" ", "+"), "https://example.org/?q=1&r=a+b"),
        ("https://example.org/a#part", "https://example.org/a"),
        ("https://example.org/K\xf6ln/%C3%A4", "https://example.org/K%C3%B6ln/%C3%A4"),
        ("https://example.org/@user/<x>", "https://example.org/@user/%3Cx%3E"),
        ("https://b\xfccher.example.org/", "https://xn--bcher-kva.example.org/"),
        ("https://example.org./", "https://example.org/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:0:0::1111]:444/", "https://[2606:4700::1111]:444/"),
    ],
)
def test_addresses_have_one_spelling(written: str, read: str) -> None:
    """An address is read into the one spelling that is used from then on, and this reads as itself."""
    assert str(parse_url(written)) == read
    assert str(parse_url(read)) == read


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "example.org",
            "https:/example.org",
            "https:example.org",
            "//example.org",
            "https://",
            "https:///x",
        ),
        *(
            "file:///etc/passwd",
            "ftp://example.org/",
            "gopher://example.org/",
            "javascript:alert(1)",
            "data:,x",
        ),
        *(
            "http://ok@127.0.0.1/",
            "http://ok:pw@example.org/",
            "http://ok\\@127.0.0.1/",
            "http:\\\\example.org",
        ),
        *(
            "http://example.org\\.evil.org/",
            "http://exa mple.org/",
            " http://example.org/",
            "http://example.org/ x",
        ),
        *(
            "http://example.org/\n",
            "http://example.org/\r\nhost: x",
            "http://exam\tple.org/",
            "http://a\x00.org/",
        ),
        *(
            "http://example.org/\xa0",
            "http://example.org/\u2003",
            "http://example.org/\u2028",
            "http://a.org/\ud800",
        ),
        *(
            "http://example.org:/",
            "http://example.org:0/",
            "http://example.org:65536/",
            "http://example.org:8a/",
        ),
        *("http://example.org:80:80/", "http://example..org/", "http://.example.org/", "http://-a.org/"),
        *(
            "http://a_b.org/",
            "http://exam%70le.org/",
            "http://example.org,evil.org/",
            "http://a*.org/",
            "http://*/",
        ),
        *(
            "http://[::1/",
            "http://::1/",
            "http://[]/",
            "http://[::g]/",
            "http://[fe80::1%25eth0]/",
            "http://[1.2.3.4]/",
        ),
        *(
            f"http://{'a' * 64}.org/",
            f"http://{'a.' * 127}org/",
            f"http://example.org/{'a' * 2000}",
            "http://../",
        ),
    ],
)
def test_what_is_no_address_is_explained(text: str) -> None:
    """The model is told what is wrong with what it wrote."""
    with pytest.raises(AddressSyntaxError, match="address"):
        parse_url(text)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "2130706433",
            "0x7f000001",
            "0X7F000001",
            "0x7f.1",
            "127.1",
            "127.0.1",
            "0177.0.0.1",
            "127.0.0.01",
            "0",
            "1",
        ),
        *(
            "017700000001",
            "127.0.0.1.",
            "127.0.0.0x1",
            "0x",
            "256.1.1.1",
            "1.2.3.4.5",
            "127.0.0.1".translate(DIGITS),
        ),
        *(
            "127.0.0.1".translate(CIRCLED),
            "8.8.8.8".translate(DIGITS),
            "127\u30020\u30020\u30021",
            "127.0.0.\u00ad1",
        ),
        *("0\uff587f.1", "example.1", "3232235777", "4294967296", "\u216b.1".lower(), "8.8.8.8."),
    ],
)
def test_disguised_ipv4_addresses_are_refused(host: str) -> None:
    """What a resolver would take for an IPv4 address is refused in every spelling but the canonical one."""
    with pytest.raises(RefusedError, match=r"^This address may not be fetched\.$"):
        parse_url(f"http://{host}/")


@given(
    st.text(
        st.sampled_from("htps:/@\\#?.[]%&= \t\n\x00127xfa\u3002\uff0e\uff10\u2460\u00df\xe9-_:0"), max_size=40
    ).map(lambda rest: f"http://{rest}")
)
def test_other_parsers_agree_about_the_host(text: str) -> None:
    """Where an address is accepted, two other parsers find the same host and port in its spelling."""
    try:
        url = parse_url(text)
    except ToolComplaint:
        return

    theirs = urlsplit(str(url))
    assert (theirs.hostname, theirs.port or 80, theirs.username) == (url.host.strip("[]"), url.port, None)
    other = httpx2.URL(str(url))
    assert (other.raw_host.decode(), other.port or 80) == (url.host.strip("[]"), url.port)


@given(st.from_regex(r"(?:0[xX])?[0-9a-fA-F]{1,12}(?:\.(?:0[xX])?[0-9a-fA-F]{0,4}){0,4}", fullmatch=True))
def test_only_canonical_numbers_are_hosts(text: str) -> None:
    """A host of digits is a canonical IPv4 address, a name that no parser takes for a number, or none at all."""
    try:
        host = plain_host(text)
    except ToolComplaint:
        return

    address = literal(host)
    if address is not None:
        assert text == str(address)
    else:
        assert not host.rpartition(".")[2].isdigit()


@pytest.mark.parametrize(
    ("location", "to"),
    [
        ("/x?y", "https://example.org/x?y"),
        ("x", "https://example.org/a/x"),
        ("../x", "https://example.org/x"),
        ("//other.org/x", "https://other.org/x"),
        ("https://other.org", "https://other.org/"),
        ("?d", "https://example.org/a/b?d"),
        ("/K\xf6ln", "https://example.org/K%C3%B6ln"),
    ],
)
def test_redirects_may_be_relative(location: str, to: str) -> None:
    """A redirect is read in the light of the page that redirects."""
    assert str(redirected(SECURE, [location.encode()])) == to


@pytest.mark.parametrize(
    "location",
    [
        *(
            b"http://example.org/",
            b"file:///etc/passwd",
            b"https://ok@example.org/",
            b"https://127.1/",
            b"//2130706433/",
        ),
        *(
            b"https://exa mple.org/",
            b"https:\\\\other.org",
            b"/\\other.org",
            b"https://[::1/",
            b"gopher://x.org/",
        ),
        *(b"https://example.org:0/", b"\x01https://example.org/", b"https://example.org/" + b"a" * 2000),
    ],
)
def test_redirects_to_no_address_are_refused(location: bytes) -> None:
    """A redirect that the model could not have asked for itself is refused, and so is one from https to http."""
    with pytest.raises(RefusedError, match=r"^This address may not be fetched\.$"):
        redirected(SECURE, [location])


@pytest.mark.parametrize("locations", [[], [b"/a", b"/b"], [b"/\xff"]])
def test_redirects_that_cannot_be_read(locations: list[bytes]) -> None:
    """A redirect to nowhere, to two places or in no known charset leads to no page."""
    with pytest.raises(PageError, match=r"^The page could not be fetched\.$"):
        redirected(SECURE, locations)


def test_an_insecure_page_may_redirect_to_a_secure_one() -> None:
    """From http, both http and https are followed."""
    insecure = PageUrl("http", "example.org", 80, "/")

    assert redirected(insecure, [b"https://example.org/"]).scheme == "https"
    assert redirected(insecure, [b"/x"]).scheme == "http"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "kubernetes",
            "vllm",
            "a.localhost",
            "kubernetes.default",
            "kube-dns.kube-system",
            "10-0-0-1.default.pod",
            "kubernetes.default.svc",
            "db.team.svc.cluster.local",
        ),
        *(
            "metadata.google.internal",
            "host.docker.internal",
            "printer.local",
            "router.lan",
            "wiki.corp",
            "nas.home",
        ),
        *("1.0.0.127.in-addr.arpa", "localhost.localdomain", "x.home.arpa", "consul.service.consul"),
    ],
)
def test_internal_names_are_known(host: str) -> None:
    """Names that only mean something inside a cluster or an office are known by their look."""
    assert looks_internal(host)


@pytest.mark.parametrize(
    "host",
    ["example.org", "local.example.org", "mylocal", "8.8.8.8", "[2606:4700::1]", "svc.org", "default.org"],
)
def test_public_names_are_not_internal(host: str) -> None:
    """A public name is not internal because of what it contains; one label alone always is."""
    assert looks_internal(host) == (host == "mylocal")


def test_an_allow_list_names_hosts_and_subdomains() -> None:
    """An exact entry covers itself alone, a starred one only what is below it."""
    allowed = allow_list(["Example.org", "*.example.net", "b\xfccher.example", "127.0.0.1", "[::1]", "wiki"])

    assert allowed.claim("example.org") is Claim.EXACT
    assert allowed.claim("xn--bcher-kva.example") is Claim.EXACT
    assert allowed.claim("127.0.0.1") is Claim.EXACT
    assert allowed.claim("[::1]") is Claim.EXACT
    assert allowed.claim("wiki") is Claim.EXACT
    assert allowed.claim("a.b.example.net") is Claim.SUBDOMAIN
    for other in (
        "a.example.org",
        "example.net",
        "badexample.net",
        "example.net.evil.org",
        "org",
        "127.0.0.2",
    ):
        assert allowed.claim(other) is Claim.NONE


def test_a_star_covers_every_host() -> None:
    """A star covers what nothing else does, and does not weaken the other entries."""
    allowed = allow_list(["*", "example.org"])

    assert allowed.claim("example.org") is Claim.EXACT
    assert allowed.claim("example.net") is Claim.ANY


@pytest.mark.parametrize(
    "entry",
    [
        *(
            "",
            "https://example.org",
            "example.org/x",
            "example.org:80",
            "a*.org",
            "*.",
            "*.*.org",
            "*.127.0.0.1",
        ),
        *("127.1", "*.1", "u@example.org", "[::1", "::1", "*.[::1]", "exa mple.org"),
    ],
)
def test_other_entries_are_errors(entry: str) -> None:
    """An entry that is no host is an error that names it, and not an entry that never matches."""
    with pytest.raises(ValueError, match="expected a host like") as error:
        allow_list([entry])
    assert repr(entry) in str(error.value)
