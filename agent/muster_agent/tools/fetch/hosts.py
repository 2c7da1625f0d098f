"""Host names: one plain spelling of each, which of them are internal by their look, and the allow-list.

A host is an IPv4 address (`192.0.2.1`), an IPv6 address in brackets (`[2001:db8::1]`), or a name in lower-case
ASCII without a dot at its end. What else a resolver would take for an IPv4 address (`127.1`, `0x7f000001`,
`2130706433`, `0177.0.0.1`, full-width digits) is refused: such a spelling has no use but to get past a check.
"""

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import idna

from muster_agent.tools.fetch.addresses import IPAddress
from muster_agent.tools.fetch.complaints import AddressSyntaxError, RefusedError

MAX_LENGTH: Final = 253
"""Characters of a DNS name (RFC 1035)."""

_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label like this makes `inet_aton`, and every browser, read the whole host as an IPv4 address."""

_INTERNAL: Final = (
    *(".local", ".localhost", ".localdomain", ".internal", ".intranet", ".private", ".corp", ".home", ".lan"),
    *(".svc", ".pod", ".consul", ".arpa"),
    *(
        ".default",
        ".kube-system",
        ".kube-public",
        ".kube-node-lease",
    ),  # `service.namespace`: those of every cluster
)
"""Ends of names that no public site has: RFC 6761, RFC 8375, ICANN's `.internal`, clusters, office networks."""


def plain_host(text: str) -> str:
    """The one spelling of the host `text`.

    Raises:
        AddressSyntaxError: It is no host.
        RefusedError: It is an IPv4 address in disguise.
    """
    if text.startswith("[") and text.endswith("]"):
        return _plain_ipv6(text)
    name = _ascii(text)
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _plain_ipv4(text)
    if len(name) > MAX_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise _no_host()
    return name


def literal(host: str) -> IPAddress | None:
    """The address that a plain host is, if it is no name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def looks_internal(host: str) -> bool:
    """Whether a plain host's name leads into a cluster or an office, whatever it resolves to."""
    if literal(host) is not None:
        return False
    return "." not in host or host.endswith(_INTERNAL)


class Claim(enum.Enum):
    """What the allow-list says of a host."""

    NONE = enum.auto()
    """It is not on the list."""
    ANY = enum.auto()
    """`*` covers it: its addresses must be public."""
    SUBDOMAIN = enum.auto()
    """A `*.` entry covers it: it may lead into permitted networks."""
    EXACT = enum.auto()
    """It is listed itself: it may also be a name that looks internal."""


@dataclass(frozen=True, slots=True)
class AllowList:
    """The hosts that may be fetched.

    Args:
        exact: Plain hosts.
        parents: Ends of names, each with its leading dot.
        everything: Whether `*` is listed.
    """

    exact: frozenset[str]
    parents: tuple[str, ...]
    everything: bool

    def claim(self, host: str) -> Claim:
        """What the list says of a plain host; its strongest entry counts."""
        if host in self.exact:
            return Claim.EXACT
        if self.parents and host.endswith(self.parents):
            return Claim.SUBDOMAIN
        return Claim.ANY if self.everything else Claim.NONE


def allow_list(entries: Iterable[str]) -> AllowList:
    """Read the entries `host`, `*.host` and `*`.

    Raises:
        ValueError: One is none of these; the message names it.
    """
    exact: set[str] = set()
    parents: set[str] = set()
    everything = False
    for entry in entries:
        if entry == "*":
            everything = True
        elif entry.startswith("*."):
            parents.add(f".{_entry_host(entry, entry[2:])}")
        else:
            exact.add(_entry_host(entry, entry))
    return AllowList(frozenset(exact), tuple(sorted(parents)), everything)


def _entry_host(entry: str, text: str) -> str:
    try:
        host = plain_host(text)
    except (AddressSyntaxError, RefusedError):
        host = None
    if host is None or (text != entry and literal(host) is not None):
        raise ValueError(
            f"{entry!r}: expected a host like example.org, *.example.org for its subdomains, or *"
        )
    return host


def _plain_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise _no_host() from None
    if address.scope_id is not None:
        raise _no_host()
    return f"[{address.compressed}]"


def _plain_ipv4(text: str) -> str:
    """`text`, if it is the canonical spelling; without it, no two parsers agree on what it means."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise RefusedError("an IPv4 address in an unusual spelling") from None


def _ascii(text: str) -> str:
    """A name in ASCII and lower case, without the dot that ends it; other scripts as UTS #46 maps them."""
    if len(text) > MAX_LENGTH:
        raise _no_host()
    try:
        name = text if text.isascii() else idna.encode(text, uts46=True).decode()
    except (UnicodeError, ValueError):
        raise _no_host() from None
    return name.lower().removesuffix(".")


def _no_host() -> AddressSyntaxError:
    return AddressSyntaxError("This is no web address: its host is not a name like example.org.")
