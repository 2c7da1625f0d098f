"""Which IP addresses may be dialled: those of the public internet, and what the operator permits on purpose.

`ipaddress.is_global` alone is no guard: it follows the interpreter's edition of the IANA registries, and calls
global what leads elsewhere (Azure's 168.63.129.16, multicast, IPv6 forms that carry an IPv4 address). So an
address must pass both it and the lists here; for IPv6 it must also be global unicast, 2000::/3, which is all
that IANA has given out.

IPv6 forms that carry an IPv4 address (mapped, compatible, 6to4, Teredo, ISATAP, local NAT64) are refused, and
not unwrapped: no resolver answers with them for a public page. The one exception is 64:ff9b::/96, which DNS64
answers for every IPv4-only site where pods have IPv6 alone: the address inside must be public. A network's own
NAT64 prefix looks like any other public address and cannot be told apart here; a network policy must.

Sources: the IANA special-purpose registries of IPv4 and IPv6 addresses, RFC 6890, 6052, 8215, 3056, 4380, 5214.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(word) for word in text.split())


NEVER: Final = _networks("""
    0.0.0.0/8 169.254.0.0/16 192.0.0.0/24 224.0.0.0/4 255.255.255.255/32
    100.100.100.200/32 168.63.129.16/32
    ::/128 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b:1::/48 2001::/32 2002::/16 fe80::/10 ff00::/8
    fd00:ec2::/32 fd20:ce::254/128 fd00:c1::a9fe:a9fe/128
""")
"""Refused whatever is permitted: this host, link-local and the clouds' metadata, groups, and wrapped IPv4."""

NOT_PUBLIC: Final = _networks("""
    10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 198.18.0.0/15
    192.0.2.0/24 192.88.99.0/24 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
    ::/96 100::/64 fc00::/7 fec0::/10 2001::/23 2001:db8::/32 2620:4f:8000::/48 3fff::/20 5f00::/16
""")
"""Private, shared, documentation and testing networks: only where the operator permits them."""

_LOOPBACK_6: Final = IPv6Address("::1")
_COMPATIBLE: Final = IPv6Network("::/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})
"""What stands before the IPv4 address in the interface identifier."""


def may_be_dialled(address: IPAddress, permitted: Iterable[IPNetwork] = ()) -> bool:
    """Whether a connection to `address` may be opened.

    Args:
        address: As resolved or as written in the URL.
        permitted: Networks besides the public internet.
    """
    if isinstance(address, IPv6Address):
        if _is_odd(address):
            return False
        if address in _NAT64:
            return is_public(IPv4Address(address.packed[-4:]))
    if _is_in(address, NEVER):
        return False
    return is_public(address) or _is_in(address, permitted)


def is_public(address: IPAddress) -> bool:
    """Whether `address` is a unicast address of the public internet."""
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST or _is_odd(address)):
        return False
    return address.is_global and not _is_in(address, NEVER) and not _is_in(address, NOT_PUBLIC)


def _is_odd(address: IPv6Address) -> bool:
    """Whether `address` depends on an interface (`%eth0`) or carries an IPv4 address in its lower half."""
    if address.scope_id is not None or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return True
    return address in _COMPATIBLE and address != _LOOPBACK_6


def _is_in(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address in network for network in networks)
