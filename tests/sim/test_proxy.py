"""The answer of a service on its way through the filters to the client, on wires of memory."""

import pytest

from sim.entity import Plugin
from tests.wire import Wired

PART = b"5\r\nabcde\r\n"
END = b"0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


class Ends:
    """Ends the body with the first part of it that passes."""

    PRIORITY = 2
    VERSION = "1"

    def body_filter(self, kong, _conf):
        """Set it."""
        kong.response.set_raw_body("whole")


class Empties:
    """Lets nothing of a body pass."""

    PRIORITY = 1
    VERSION = "1"

    def body_filter(self, kong, _conf):
        """Take it."""
        kong.ngx.arg[1] = None


class Mistakes:
    """Asks for headers, and removes one, by a name that is theirs but for a letter: the sign of Kelvin."""

    PRIORITY = 1
    VERSION = "1"
    found = ()

    def header_filter(self, kong, _conf):
        """Ask and remove."""
        name = "x-\u212aey"
        kong.response.clear_header(name)
        Mistakes.found = [part.get_header(name) for part in (kong.request, kong.service.response, kong.response)]


def asked(*plugins, framing=CHUNKED):
    """A client whose request waits for more of the body that a service has begun to send."""
    classes = {plugin.__name__.lower(): plugin for plugin in plugins}
    wired = Wired(kept=1, plugins=[Plugin(name=name) for name in classes], classes=classes)
    [service] = wired.upstreams
    service.turn = list  # it does not answer by itself
    client = wired.client().send(b"GET / HTTP/1.1\r\nHost: g\r\nX-Key: 1\r\n\r\n")
    service.protocol.data_received(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
    service.protocol.data_received(PART)
    return wired, client, service


@pytest.mark.parametrize(
    ("plugins", "body"), [((Ends,), b"5\r\nwhole\r\n"), ((Ends, Empties), b"")], ids=["text", "nothing"]
)
def test_body_that_a_filter_ends_is_whole_before_the_services_is(plugins, body):
    """The last chunk goes with the part that ends it, once, and what follows is consumed (ngx_lua)."""
    _, client, service = asked(*plugins)
    received = client.received()
    assert received.partition(b"\r\n\r\n")[2] == body + END

    service.protocol.data_received(PART)
    service.protocol.data_received(END)
    assert client.received() == received


def test_body_that_a_filter_has_ended_stays_whole_when_the_service_breaks_off():
    """The client has its answer; then the connection is closed (nginx)."""
    wired, client, service = asked(Ends)
    service.protocol.connection_lost(None)

    assert client.received().endswith(b"\r\n\r\n5\r\nwhole\r\n" + END)
    assert (client.wire.closing, client.wire.aborted) == (True, False)
    assert [request.status for request in wired.ended] == [200]


def test_body_of_known_length_that_a_filter_ends_has_no_last_chunk():
    """Its length says where it ends."""
    _, client, _ = asked(Ends, framing=b"Content-Length: 20")

    assert client.received().endswith(b"\r\n\r\nwhole")


def test_letters_beyond_ascii_have_no_other_case_in_the_name_of_a_header():
    """A plugin finds, and removes, only the header that has the bytes of the name (Lua's `string.lower`)."""
    _, client, _ = asked(Mistakes, framing=b"X-Key: 2\r\n" + CHUNKED)

    assert b"\r\nX-Key: 2\r\n" in client.received()
    assert Mistakes.found == [None, None, None]


def test_client_is_read_no_further_while_the_service_does_not_take_what_has_come():
    """Also where what goes out at once, the head and what had come with it, is too much already."""
    wired = Wired(kept=1)
    [service] = wired.upstreams
    service.turn = list  # it takes nothing by itself
    write = service.wire.write

    def write_too_much(data):
        write(data)
        service.protocol.pause_writing()

    service.wire.write = write_too_much
    client = wired.client().send(b"PUT / HTTP/1.1\r\nHost: g\r\nContent-Length: 9\r\n\r\n")
    assert service.wire.take().endswith(b"\r\n\r\n")
    assert not client.wire.reading

    service.protocol.resume_writing()
    assert client.wire.reading
    client.send(b"abc")
    assert service.wire.take() == b"abc"
    assert not client.wire.reading
