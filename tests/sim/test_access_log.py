"""Lines of the access log: nginx's format, and no client can forge one."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.access_log import AccessLog, escaped
from sim.errors import UserError

LINE = re.compile(
    rb'(?P<addr>\S+) - (?P<user>.+?) \[(?P<time>[^]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<bytes>\d+)'
    rb' "(?P<referer>[^"]*)" "(?P<agent>[^"]*)"'
)
NOON_NS = 1_795_600_800_000_000_000


def request(*lines, line=b"GET /a HTTP/1.1", status=200, sent=12, peer="192.0.2.7"):
    runloop = SimpleNamespace(time_ns=lambda: NOON_NS)
    connection = SimpleNamespace(runloop=runloop)
    return SimpleNamespace(
        connection=connection,
        client_ip=peer,
        lines=list(lines),
        request_line=line,
        status=status,
        body_bytes_sent=sent,
    )


def logged(path, *requests):
    log = AccessLog(path)
    for one in requests:
        log.note(one)
    log.flush()
    log.close()
    return path.read_bytes().splitlines()


def test_line_has_the_fields_of_nginx(tmp_path):
    """Address, user, local time, request, status, bytes, referer and agent stand in nginx's order."""
    (line,) = logged(
        tmp_path / "access.log",
        request(
            (b"User-Agent", b"curl/8.1"), (b"Referer", b"http://a/"), (b"Authorization", b"Basic YWxhZGRpbjpvcGVu")
        ),
    )

    found = LINE.fullmatch(line)
    assert found is not None
    assert found.group("addr", "user", "request") == (b"192.0.2.7", b"aladdin", b"GET /a HTTP/1.1")
    assert found.group("status", "bytes", "referer", "agent") == (b"200", b"12", b"http://a/", b"curl/8.1")
    assert re.fullmatch(rb"\d\d/[A-Z][a-z]{2}/2026:\d\d:\d\d:\d\d [+-]\d{4}", found["time"])


@pytest.mark.parametrize("authorization", [b"Basic !!!", b"Bearer x", b"Basic", b""])
def test_what_is_not_there_is_a_dash(tmp_path, authorization):
    """A request without referer, agent and readable user."""
    (line,) = logged(tmp_path / "access.log", request((b"authorization", authorization)))

    assert line.startswith(b"192.0.2.7 - - [")
    assert line.endswith(b'"GET /a HTTP/1.1" 200 12 "-" "-"')


@given(st.binary(), st.binary(), st.binary())
def test_no_client_can_forge_a_line(tmp_path_factory, target, agent, referer):
    """Whatever is sent stays within its quotes, on one line, in printable ASCII."""
    path = tmp_path_factory.mktemp("log") / "access.log"
    lines = (b"user-agent", agent), (b"referer", referer)
    (line,) = logged(path, request(*lines, line=b"GET %b HTTP/1.1" % target))

    found = LINE.fullmatch(line)
    assert found is not None
    assert found["request"] == b"GET %b HTTP/1.1" % escaped(target)


def test_quotes_and_control_bytes_are_escaped_as_nginx_does():
    """`\\xHH` in capitals; the rest stays."""
    assert escaped(b'a"b\\c\nd\x7f\xe9 ~') == rb"a\x22b\x5Cc\x0Ad\x7F\xE9 ~"


def test_lines_are_written_when_the_turn_ends(tmp_path):
    """Many requests are one write, in their order."""
    log = AccessLog(tmp_path / "access.log")
    for status in (200, 404, 502):
        log.note(request(status=status))
    assert log.path.read_bytes() == b""

    log.flush()

    assert [LINE.fullmatch(line)["status"] for line in log.path.read_bytes().splitlines()] == [b"200", b"404", b"502"]
    log.close()


def test_log_that_cannot_be_opened_is_a_mistake_of_the_user(tmp_path):
    """One line names the setting, the file and the cause."""
    with pytest.raises(
        UserError, match=r"^access_log: cannot open .*/no/such/access\.log: No such file or directory; "
    ):
        AccessLog(tmp_path / "no" / "such" / "access.log")
