"""Which addresses may be dialled."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.tools.fetch.addresses import NEVER, NOT_PUBLIC, IPAddress, is_public, may_be_dialled

EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def _words(text: str) -> list[str]:
    return text.split()


LISTED = [network for network in (*NEVER, *NOT_PUBLIC) if network.version == 6]


@pytest.mark.parametrize(
    "address",
    _words("""
        1.1.1.1 8.8.8.8 93.184.215.14 192.0.1.1 2606:4700:4700::1111 2a00:1450:4001::8 64:ff9b::808:808
    """),
)
def test_public_addresses_may_be_dialled(address: str) -> None:
    """The internet is reachable, also from a network that reaches its IPv4 part through DNS64."""
    assert may_be_dialled(ip_address(address))


@pytest.mark.parametrize(
    "address",
    _words("""
        127.0.0.1 127.8.8.8 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1
        100.100.100.200 0.0.0.0 0.1.2.3 192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1
        192.88.99.1 168.63.129.16 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    """),
)
def test_other_ipv4_addresses_may_not(address: str) -> None:
    """Loopback, private, shared, link-local, metadata, documentation, group and reserved addresses are not public."""
    assert not may_be_dialled(ip_address(address))


@pytest.mark.parametrize(
    "address",
    _words("""
        :: ::1 fe80::1 fe80::a9fe:a9fe fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 fd20:ce::254
        2001:db8::1 3fff::1 100::1 5f00::1 2001:2::1 2001:10::1 4000::1
    """),
)
def test_other_ipv6_addresses_may_not(address: str) -> None:
    """Only global unicast that has been given out is public."""
    assert not may_be_dialled(ip_address(address))


@pytest.mark.parametrize(
    "address",
    _words("""
        ::ffff:a9fe:a9fe ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 ::127.0.0.1 ::8.8.8.8
        64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b:1::a9fe:a9fe 2002:a9fe:a9fe:: 2002:7f00:1::1
        2001:0:a9fe:a9fe::1 2001::5601:5601 2606:4700::5efe:127.0.0.1 2606:4700::200:5efe:7f00:1
        64:ff9b::808:808%eth0
    """),
)
def test_wrapped_ipv4_addresses_may_not(address: str) -> None:
    """An IPv6 address that carries an IPv4 address is refused, whatever is permitted."""
    assert not may_be_dialled(ip_address(address), EVERYTHING)


def test_the_operator_permits_private_networks() -> None:
    """A permitted network may be dialled, and nothing beside it."""
    permitted = (ip_network("10.1.0.0/16"), ip_network("fd12::/48"), ip_network("::1/128"))

    assert may_be_dialled(ip_address("10.1.2.3"), permitted)
    assert may_be_dialled(ip_address("fd12::5"), permitted)
    assert may_be_dialled(ip_address("::1"), permitted)
    assert not may_be_dialled(ip_address("10.2.0.1"), permitted)
    assert not may_be_dialled(ip_address("64:ff9b::10.1.2.3"), permitted)


@pytest.mark.parametrize(
    "address",
    _words("""
        169.254.169.254 168.63.129.16 100.100.100.200 192.0.0.192 fd00:ec2::254 0.0.0.0 ff02::1
    """),
)
def test_metadata_is_never_permitted(address: str) -> None:
    """No permitted network is so wide that a cloud's metadata, this host or a group may be dialled."""
    assert not may_be_dialled(ip_address(address), EVERYTHING)


@given(
    st.one_of(
        st.ip_addresses(v=4),
        st.ip_addresses(v=6),
        st.sampled_from(LISTED).flatmap(lambda network: st.ip_addresses(network=network)),
        st.integers(0, 2**32 - 1).map(lambda low: IPv6Address((0x0064FF9B << 96) + low)),
    )
)
def test_no_address_is_public_that_others_refuse(address: IPAddress) -> None:
    """What LangChain's own guard, or the standard library, does not call public, is not public here."""
    security = pytest.importorskip("langchain_core._security")  # not theirs to promise
    try:
        security.validate_resolved_ip(str(address), security.SSRFPolicy())
        theirs = True
    except security.SSRFBlockedError:
        theirs = False

    assert may_be_dialled(address) <= theirs
    assert is_public(address) <= (address.is_global and not address.is_multicast)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_public_as_it_is_through_dns64(address: IPv4Address) -> None:
    """The well-known NAT64 prefix changes nothing about the address behind it."""
    wrapped = IPv6Address((0x0064FF9B << 96) + int(address))

    assert may_be_dialled(wrapped) == may_be_dialled(address)
