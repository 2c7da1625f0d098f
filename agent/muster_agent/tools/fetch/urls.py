"""What a web address of the model may be: parsed here, once; what is dialled and sent is built from the parts.

No other parser sees the text, so there is none to disagree with about where the host begins and ends.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urljoin

from muster_agent.tools.complaints import ToolComplaint
from muster_agent.tools.fetch.complaints import AddressSyntaxError, RefusedError, unreachable
from muster_agent.tools.fetch.hosts import plain_host

MAX_LENGTH: Final = 2000
"""Characters of an address: what every browser and server takes."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[^\[\]/?#@]*\]|[^\[\]/?#@:]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_UNFIT = re.compile(r"[\x00-\x20\x7f-\xa0\\\ud800-\udfff]|[^\S ]")
"""Controls, white space, backslashes and lone surrogates: parsers differ about each of them."""
_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~%"
_QUERY_SAFE: Final = _PATH_SAFE + "?"


@dataclass(frozen=True, slots=True)
class PageUrl:
    """A web address, in the only spelling that is used from here on.

    Args:
        scheme: `http` or `https`.
        host: As `hosts.plain_host` writes it.
        port: The scheme's own if none was written.
        target: Path and query, in ASCII; a fragment is never sent.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the `host` header has them."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> PageUrl:
    """Read a web address.

    Raises:
        AddressSyntaxError: It is none; the text says what is wrong.
        RefusedError: Its host is an IPv4 address in disguise.
    """
    if len(text) > MAX_LENGTH:
        raise AddressSyntaxError(f"This address is longer than {MAX_LENGTH} characters.")
    if _UNFIT.search(text):
        raise AddressSyntaxError("A web address has no spaces, line breaks or backslashes.")
    match = _URL.fullmatch(text)
    if match is None:
        raise _why_not(text)
    scheme = match["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise AddressSyntaxError("Only addresses that begin with https:// or http:// can be fetched.")
    return PageUrl(
        scheme=scheme,
        host=plain_host(match["host"]),
        port=_port(match["port"], scheme),
        target=quote(match["path"] or "/", safe=_PATH_SAFE) + quote(match["query"] or "", safe=_QUERY_SAFE),
    )


def redirected(base: PageUrl, locations: list[bytes]) -> PageUrl:
    """Where the `location` headers of a redirect lead.

    Raises:
        PageError: There is not one that can be read.
        RefusedError: It is no web address, or steps down from https to http.
    """
    try:
        (location,) = locations
        text = location.decode()
    except ValueError:
        raise unreachable() from None
    if _UNFIT.search(text):
        raise RefusedError("a redirect to what is no address")
    try:
        url = parse_url(urljoin(str(base), text))
    except (ToolComplaint, ValueError):
        raise RefusedError("a redirect to what is no address") from None
    if base.scheme == "https" and url.scheme != "https":
        raise RefusedError("a redirect from https to http")
    return url


def _port(text: str | None, scheme: str) -> int:
    if text is None:
        return DEFAULT_PORTS[scheme]
    if not 1 <= int(text) <= 65535:  # noqa: PLR2004 - what a port is
        raise AddressSyntaxError("The port of this address is not between 1 and 65535.")
    return int(text)


def _why_not(text: str) -> AddressSyntaxError:
    """What is wrong with a text that is no address, for the two mistakes that models make."""
    authority = text.partition("://")[2].partition("/")[0]
    if "@" in authority:
        return AddressSyntaxError("An address with a user name or password cannot be fetched.")
    return AddressSyntaxError("This is no web address. Write it in full, like https://example.org/page")
