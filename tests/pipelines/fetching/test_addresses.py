"""Which addresses are public, against Python's own tables and a list of known traps."""

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worldloom.pipelines.fetching.addresses import is_public, literal

PUBLIC = [
    "8.8.8.8",
    "93.184.216.34",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.0.1",
    "172.32.0.1",
    "192.167.255.255",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
    "2001:4860::8888",
]
SPECIAL = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12::1"],
    "carriers": ["100.64.0.0", "100.127.255.255"],
    "link-local": ["169.254.169.254", "fe80::1", "fe80::1%eth0", "fe80::1%2", "2606:4700::1%eth0"],
    "site-local": ["fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "5f00::1", "4000::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "protocols": ["192.0.0.1", "192.88.99.1", "2001:10::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1"],
    "6to4": ["2002:7f00:1::", "2002:0808:0808::1"],
    "Teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "discard": ["100::1"],
    "no address": ["", "example.com", "127.1", "1.2.3.4.5", "0x7f.0.0.1", " 8.8.8.8"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_asked(address):
    assert is_public(address)


@pytest.mark.parametrize("address", [a for addresses in SPECIAL.values() for a in addresses])
def test_special_addresses_may_not(address):
    assert not is_public(address)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_any_address_as_python_sees_it(address):
    relays = [ipaddress.ip_network(n) for n in ("192.88.99.0/24", "192.0.0.0/24")]
    expected = address.is_global and not address.is_multicast and not any(address in n for n in relays)
    assert is_public(str(address)) == expected


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address) | st.ip_addresses(v=6))
def test_no_address_that_python_calls_special(address):
    if is_public(str(address)):
        assert address.is_global and not address.is_multicast and not address.is_reserved
        assert address.ipv4_mapped is None and address.sixtofour is None and address.teredo is None


@pytest.mark.parametrize(
    "spelling",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "0X7F.0.0.1",
        "127.0.0.1.",
        "127.0.0.0x1",
        "00000000177.0.0.1",
    ],
)
def test_every_spelling_of_an_address_is_read(spelling):
    assert literal(spelling) == "127.0.0.1"
    assert spelling.endswith(".") or socket.gethostbyname(spelling) == "127.0.0.1"  # as the system reads it


@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1", "::0001"])
def test_spellings_of_ipv6(host):
    assert literal(host) == "::1"


@pytest.mark.parametrize("host", ["example.com", "1.2.3.4.example", "x7f", "cafe", "123abc", "1e1", "a.b.", "-1", ""])
def test_names_are_no_addresses(host):
    assert literal(host) is None


@pytest.mark.parametrize(
    "host", ["1.2.3.4.5", "256.256.256.256", "4294967296", "0x", "0xfg", "09.1", "a.1", "1..2", "fe80::g"]
)
def test_what_is_neither_is_refused(host):
    with pytest.raises(ValueError):
        literal(host)
