"""Sockets that listen on both families, and what counts as free, as an address and as our own."""

from __future__ import annotations

import socket

import pytest

from vit_dist.core.network import free_port, is_address, is_free, is_own_address, listen, own_address, resolves


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_socket_that_listens_does_so_by_both_families(host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with listen() as server, socket.create_connection((host, server.getsockname()[1]), timeout=10) as link:
        accepted, _ = server.accept()
        accepted.sendall(b"x")
        accepted.close()
        assert link.recv(1) == b"x"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_is_free_where_neither_family_holds_it(family: socket.AddressFamily) -> None:
    with socket.socket(family) as held:
        if family is socket.AF_INET6:
            if not socket.has_dualstack_ipv6():
                pytest.skip("no IPv6 here")
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind(("", 0))
        port = held.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
    assert is_free(free_port())


def test_a_port_that_is_taken_is_an_error_and_not_half_a_server() -> None:
    with listen() as server, pytest.raises(OSError, match="in use"):
        listen(server.getsockname()[1])


def test_names_addresses_and_which_of_them_are_ours() -> None:
    for text in ("10.0.0.7", "::1", "fe80::1%eth0", "2001:db8::7"):
        assert is_address(text)
    for text in ("n1", "10.0.0", "", "n1.cluster"):
        assert not is_address(text)
    assert is_own_address("127.0.0.1")
    assert not is_own_address("192.0.2.1")
    assert not is_own_address("no-such-node-7.invalid")
    assert resolves("localhost")
    assert not resolves("no-such-node-7.invalid")
    assert not resolves("x" * 300)
    assert own_address() == "" or is_own_address(own_address())
