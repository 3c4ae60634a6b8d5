"""Binding, and the mistakes that a user can make about it."""

import os
import socket
from pathlib import Path

import pytest

from sim import process
from sim.config import Gateway
from sim.error_log import ErrorLog
from sim.errors import UserError
from sim.master import Master, listen, url_of
from sim.scoreboard import Scoreboard
from tests.peers import free_port


def test_port_0_is_any_free_port():
    """The address that was really bound is known afterwards."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert listener.getblocking() is False
        socket.create_connection(("127.0.0.1", port)).close()


def test_ipv6_address_stands_in_brackets():
    """A URL shows an IPv6 host as RFC 3986 wants it."""
    try:
        listener = listen("::1", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert url_of(listener).startswith("http://[::1]:")


def test_busy_port_is_a_mistake_of_the_user():
    """One line names the address, the field and the cure."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError) as caught:
            listen("127.0.0.1", port, field="listen")

    assert str(caught.value) == (
        f"listen: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "end the program that listens there, or choose another port; 0 is any free one"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_of_another_machine_is_a_mistake_of_the_user(host):
    """An address that this machine does not have cannot be bound."""
    with pytest.raises(UserError, match="write an address of this machine"):
        listen(host, 0)


def test_port_is_bound_when_the_master_is_made():
    """Whoever makes a master hears of a busy port before anything runs."""
    with listen("127.0.0.1", 0) as listener:
        gateway = Gateway(listen=f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(UserError, match=r"^listen: cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
            Master(gateway, Scoreboard(1), error_log=ErrorLog())


def test_closing_a_master_that_runs_elsewhere_frees_the_port():
    """A master that nobody runs holds no port after `close`."""
    master = Master(Gateway(listen=f"127.0.0.1:{free_port()}"), Scoreboard(1), error_log=ErrorLog())
    address = master.listeners[0].getsockname()

    master.close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_port_without_permission_is_an_error_of_the_user():
    """A port that only root may bind is refused in one line that says what to do."""
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_free <= 1:
        pytest.skip("every port is free for everybody here")
    ours, theirs = process.pipe()

    def bind():
        if os.getuid() == 0:
            os.setuid(65_534)
        try:
            listen("127.0.0.1", first_free - 1)
        except UserError as error:
            theirs.send(str(error))

    child = process.start(bind, name="nobody", closing=[ours])
    theirs.close()
    assert process.reap(child, 30) == 0
    assert ours.recv() == (
        f"cannot listen on 127.0.0.1:{first_free - 1}: Permission denied; choose a port above 1023; 0 is any free one"
    )
    ours.close()
