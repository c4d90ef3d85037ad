"""Which internet addresses may be asked: those that anyone on the internet may ask, and no others (design §7)."""

import ipaddress
import socket

# Source: IANA's registry of special-purpose IPv4 addresses, with the multicast and reserved blocks.
# https://www.iana.org/assignments/iana-ipv4-special-registry
SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a carrier's customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: also where clouds answer with their credentials
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
# All of IPv6 that is handed out. Outside lie loopback, private, link-local and multicast addresses, and the mapped and
# NAT64 forms, which carry an IPv4 address past a rule for IPv4.
# https://www.iana.org/assignments/ipv6-address-space and .../iana-ipv6-special-registry
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo (which carries an IPv4 address), ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries an IPv4 address
        "3fff::/20",  # documentation
    )
)


def is_public(address: str) -> bool:
    """Tell whether an address, such as a name server answers it, is one that anyone on the internet may ask."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in block for block in SPECIAL_V4)
    return found.scope_id is None and found in GLOBAL_V6 and not any(found in block for block in SPECIAL_V6)


def literal(host: str) -> str | None:
    """Read a link's host that is no name but an address in any spelling: 127.1, 0x7f.1, 2130706433, 0177.0.0.1, ::1.

    Returns the address in its usual spelling, or None where the host is a name. As for browsers, a host whose last
    label is a number is an address (https://url.spec.whatwg.org/#ends-in-a-number-checker).

    Raises:
      ValueError: where the host can be neither.
    """
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    host = host.rstrip(".")
    last = host.rpartition(".")[2].lower()
    if not (last.isdecimal() or last.startswith("0x")):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError as error:
        raise ValueError(f"{host!r} ends like an address and is none") from error
