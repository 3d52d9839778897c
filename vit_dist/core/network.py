"""Sockets of ours: what listens does so on IPv4 and IPv6 both; which port is free; this machine's own address."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket


def listen(port: int = 0, *, backlog: int = 128) -> socket.socket:
    """A socket that listens on every address of this machine, by IPv4 and IPv6; by IPv4 alone where there is no IPv6.

    Args:
        port: 0 takes any that is free.
        backlog: connections that may wait until they are accepted.

    Raises:
        OSError: the port is taken.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
        except OSError as error:
            # Where IPv6 is switched off while the kernel knows of it, IPv4 is left.
            if error.errno == errno.EADDRINUSE:
                raise
    return socket.create_server(("", port), backlog=backlog)


def is_free(port: int) -> bool:
    """Whether nothing holds a port by either family, not even a closed connection that is in TIME_WAIT."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            with socket.socket(family) as probe:
                if family is socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
    return True


def free_port() -> int:
    """A port that nothing listens on. Another process may take it before its user does."""
    with listen() as probe:
        return int(probe.getsockname()[1])


def own_address() -> str:
    """This machine's address towards others, the IPv4 one where there is one; '' where no route leads out.

    Asks the routing table; nothing is sent.
    """
    # Addresses of the documentation (RFC 5737, RFC 3849): nobody has them, and the default route leads there.
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    return ""


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, and no name."""
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def is_own_address(address: str) -> bool:
    """Whether an address, or a name's, is one of this machine's."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, place in socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
                return True
    return False


def resolves(name: str) -> bool:
    """Whether this machine finds an address for a name. An address is one."""
    try:
        socket.getaddrinfo(name, None)
    # An over-long label is a UnicodeError.
    except (OSError, UnicodeError):
        return False
    return True
