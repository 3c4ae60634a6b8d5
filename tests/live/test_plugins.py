"""Plugins on real sockets: phases and what they permit, the PDK, early exit, errors, timers, instrumentations."""

import asyncio
import http.client
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from signal import SIGTERM
from urllib.parse import unquote

import pytest
import trustme

from kongtrace import ApiError
from sim.config import Nginx
from sim.entity import Plugin, Upstream
from tests import peers
from tests.gateway import (
    TIMEOUT_S,
    Base,
    attributes,
    echo,
    gateway_to,
    live,
    recording_collector,
    served,
    traced_gateway,
)


def told(answer):
    """What the echo was asked."""
    assert answer.status == 200, answer.content
    asked = json.loads(answer.content)
    return asked | {"headers": {name.lower(): value for name, value in asked["headers"]}}


# What a phase permits.


class Forbidden(Base):
    """Tries in each phase that must not wait what nginx forbids there."""

    def attempt(self, kong):
        """Log what each attempt says."""
        for attempt in (
            lambda: kong.ngx.sleep(0),
            kong.ngx.socket.tcp,
            kong.ngx.http.new,
            lambda: kong.db.query("SELECT 1"),
        ):
            try:
                attempt()
            except Exception as error:  # noqa: BLE001 - it is what is looked for
                kong.log.err(error)
            else:
                kong.log.err("nothing happened")
        assert kong.timer.at(0, lambda _premature: None) == (True, None)

    def header_filter(self, kong, _conf):
        """Try."""
        self.attempt(kong)

    def body_filter(self, kong, _conf):
        """Try, once."""
        if kong.ngx.arg[2]:
            self.attempt(kong)

    def log(self, kong, _conf):
        """Try."""
        self.attempt(kong)


def test_phase_that_must_not_wait_refuses_sockets_and_sleep_in_nginxs_words(tmp_path):
    """The call itself fails, not the awaiting of it; timers can be made."""  # R1, R2
    with served(tmp_path, Forbidden) as gateway:
        assert gateway.request().status == 200
        gateway.wait_requests(1)
        log = gateway.log.read_text()

    for phase in ("header_filter", "body_filter", "log"):
        assert log.count(f"API disabled in the context of {phase}_by_lua*") == 4
    assert "nothing happened" not in log


class Misplaced(Base):
    """Calls functions of the PDK where Kong does not permit them."""

    def init_worker(self, kong):
        """Ask for a request where there is none."""
        self.tell(kong, kong.request.get_method)

    def access(self, kong, _conf):
        """Ask for what is not there yet, and let a timer ask."""
        self.tell(kong, kong.response.get_status)
        self.tell(kong, lambda: kong.response.set_raw_body(b""))
        kong.timer.at(0, lambda _premature: self.tell(kong, kong.request.get_method))

    def log(self, kong, _conf):
        """Ask for what has gone."""
        self.tell(kong, lambda: kong.response.exit(200))
        self.tell(kong, lambda: kong.service.request.set_header("a", "b"))

    @staticmethod
    def tell(kong, function):
        """Log what it says."""
        try:
            function()
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            kong.log.err(error)


def test_function_of_the_pdk_is_refused_where_kong_does_not_permit_it(tmp_path):
    """The message names the phase and the permitted ones."""  # R9
    after = "response, header_filter, body_filter, log, error, admin_api"
    everywhere = f"rewrite, access, {after}"
    with served(tmp_path, Misplaced) as gateway:
        assert gateway.request().status == 200
        gateway.wait_requests(1)
        gateway.stop()
        log = gateway.log.read_text()

    for message in (
        f"function cannot be called in init_worker phase (only in: {everywhere})",
        f"function cannot be called in access phase (only in: {after})",
        "function cannot be called in access phase (only in: body_filter)",
        f"no phase in ngx.ctx.KONG_PHASE, (need one of {everywhere})",
        "function cannot be called in log phase (only in: rewrite, access, response, header_filter, error, admin_api)",
        "function cannot be called in log phase (only in: rewrite, access, balancer)",
    ):
        assert message in log


class Slow(Base):
    """Waits, and looks whether its tables and its request are still its own."""

    async def access(self, kong, _conf):
        """Remember, wait, compare."""
        path = kong.request.get_path()
        kong.ctx.plugin["path"] = kong.ctx.shared["path"] = kong.ngx.ctx["path"] = path
        for _ in range(5):
            await kong.ngx.sleep(0.002)
            seen = kong.ctx.plugin["path"], kong.ctx.shared["path"], kong.ngx.ctx["path"], kong.request.get_path()
            assert seen == (path,) * 4
            assert kong.ngx.get_phase() == "access"
        kong.service.request.set_header("X-Path", path)

    def header_filter(self, kong, _conf):
        """Tell the client."""
        kong.response.set_header("X-Plugin", kong.ctx.plugin["path"])


class Slower(Slow):
    """The same, with tables of its own, before the other."""

    PRIORITY = 200

    def header_filter(self, kong, _conf):
        """Leave it to the other."""
        assert kong.ctx.plugin["path"] == kong.request.get_path()
        assert kong.plugin.get_id() != ""


def test_what_belongs_to_a_request_stays_with_it_across_awaits(tmp_path):
    """Twenty requests at once on one worker: tables, request and phase are each one's own throughout."""  # R3, R4
    with served(tmp_path, Slow, Slower) as gateway, ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda number: gateway.request("GET", f"/{number}"), range(60)))

    for number, answer in enumerate(answers):
        assert told(answer)["headers"]["x-path"] == answer.headers["X-Plugin"] == f"/{number}"


class Clock(Base):
    """Reads the cached clock around work and waits."""

    async def access(self, kong, _conf):
        """Tell how far it moved."""
        ngx = kong.ngx
        first = ngx.now()
        ngx.spend_cpu(0.02)
        busy = ngx.now() - first
        ngx.update_time()
        updated = ngx.now() - first
        before = ngx.now()
        await ngx.sleep(0.02)
        kong.response.exit(200, {"busy": busy, "updated": updated, "slept": ngx.now() - before, "now": first})


def test_cached_time_moves_with_the_event_loop_or_on_demand(tmp_path):
    """It stands still while a handler computes, `update_time` moves it, and so does waiting; it is whole ms."""  # R8
    with served(tmp_path, Clock) as gateway:
        moved = json.loads(gateway.request().content)

    assert moved["busy"] == 0
    # A difference of two times since the epoch is known to a quarter of a microsecond.
    assert round(moved["updated"], 3) >= 0.019
    assert round(moved["slept"], 3) >= 0.019
    assert moved["now"] == round(moved["now"], 3)


SLEPT_MS_MIN = 19
"""What whole ms show at least of a wait of 20: uvloop counts whole ones too, and whatever wakes it may end a wait up to
one early."""


class Times(Base):
    """Answers a path by itself, raises in another, and tells in log which times its request has."""

    async def access(self, kong, _conf):
        """Take a while."""
        await kong.ngx.sleep(0.02)
        if kong.request.get_path() == "/own":
            kong.response.exit(200, {})

    def header_filter(self, kong, _conf):
        """Compute, so that the phase takes a while."""
        kong.ngx.spend_cpu(0.01)
        if kong.request.get_path() == "/raise":
            raise RuntimeError("boom")

    def log(self, kong, _conf):
        """Tell."""
        times = {key: value for key, value in kong.ngx.ctx.items() if isinstance(value, int)}
        kong.log.notice(f"times {json.dumps(times)}")


def times_of(gateway, path):
    """The times of one request."""
    before = gateway.log.read_text().count("times {")
    gateway.request(path=path)
    gateway.wait_until(lambda _reading: gateway.log.read_text().count("times {") > before)
    line = [line for line in gateway.log.read_text().splitlines() if "times {" in line][-1]
    return json.JSONDecoder().raw_decode(line[line.index("{") :])[0]


def test_context_has_the_times_of_the_phases(tmp_path):
    """In ms and in order: each phase begins when the one before has ended, and the latencies are their differences."""
    with served(tmp_path, Times) as gateway:  # R10
        times = times_of(gateway, "/")

    order = ["PROCESSING_START", "REWRITE_START", "REWRITE_ENDED_AT", "ACCESS_START", "ACCESS_ENDED_AT"]
    order += ["BALANCER_START", "BALANCER_ENDED_AT", "HEADER_FILTER_START", "HEADER_FILTER_ENDED_AT"]
    order += ["BODY_FILTER_START", "BODY_FILTER_ENDED_AT", "LOG_START"]
    moments = [times[f"KONG_{name}"] for name in order]
    assert moments == sorted(moments)
    for phase in ("REWRITE", "ACCESS", "BALANCER", "HEADER_FILTER", "BODY_FILTER"):
        assert times[f"KONG_{phase}_TIME"] == times[f"KONG_{phase}_ENDED_AT"] - times[f"KONG_{phase}_START"]
    assert times["KONG_ACCESS_TIME"] >= SLEPT_MS_MIN
    assert times["KONG_HEADER_FILTER_TIME"] >= 9
    assert times["KONG_PROXIED"] is True
    assert times["KONG_PROXY_LATENCY"] == times["KONG_BALANCER_ENDED_AT"] - times["KONG_PROCESSING_START"]
    assert times["KONG_WAITING_TIME"] == times["KONG_HEADER_FILTER_START"] - times["KONG_BALANCER_ENDED_AT"]
    assert times["KONG_RECEIVE_TIME"] == times["KONG_BODY_FILTER_ENDED_AT"] - times["KONG_HEADER_FILTER_START"]
    assert times["KONG_BODY_FILTER_ENDED_AT_NS"] <= times["KONG_LOG_START_NS"]
    assert "KONG_RESPONSE_LATENCY" not in times


def test_context_of_an_answer_of_a_plugins_own_has_its_latency(tmp_path):
    """It is not proxied; the access phase that was left early ends where the next begins."""  # R10
    with served(tmp_path, Times) as gateway:
        times = times_of(gateway, "/own")

    assert times["KONG_RESPONSE_LATENCY"] == times["KONG_HEADER_FILTER_START"] - times["KONG_PROCESSING_START"]
    assert times["KONG_RESPONSE_LATENCY"] >= SLEPT_MS_MIN
    assert times["KONG_ACCESS_ENDED_AT"] <= times["KONG_HEADER_FILTER_START"]
    assert {"KONG_PROXIED", "KONG_PROXY_LATENCY", "KONG_WAITING_TIME", "KONG_RECEIVE_TIME"} & times.keys() == set()


def test_phase_that_raised_gets_its_end_from_the_next(tmp_path):
    """A header filter that raises is ended by the log phase; no body was filtered."""  # R6, R10
    with served(tmp_path, Times) as gateway:
        gateway.exchange(b"GET /raise HTTP/1.1\r\nHost: g\r\n\r\n")
        line = gateway.wait_logged("times {")
        times = json.JSONDecoder().raw_decode(line[line.index("{") :])[0]

    assert times["KONG_HEADER_FILTER_ENDED_AT"] == times["KONG_LOG_START"]
    assert "KONG_BODY_FILTER_ENDED_AT" not in times


# Early exit and errors.


class First(Base):
    """Answers early."""

    PRIORITY = 200

    def access(self, kong, conf):
        """Answer, whatever is caught on the way."""
        kong.response.set_header("X-Early", "yes")
        try:
            kong.response.exit(418, conf.get("body"), {"X-Exit": "1"})
        except Exception:  # noqa: BLE001 - an answer is no error
            kong.log.err("caught")

    def header_filter(self, kong, _conf):
        """Say where the answer came from."""
        kong.response.set_header("X-Source", kong.response.get_source())


class Second(Base):
    """Comes after the first."""

    def access(self, kong, _conf):
        """Leave a mark."""
        kong.log.err("second access")

    def header_filter(self, kong, _conf):
        """Leave a mark."""
        kong.response.set_header("X-Second", str(kong.response.get_status()))

    def log(self, kong, _conf):
        """Leave a mark."""
        kong.log.err("second log")


@pytest.mark.parametrize(
    ("body", "content", "content_type"),
    [
        ({"message": "tea"}, b'{"message":"tea"}', "application/json; charset=utf-8"),
        ("tea", b"tea", None),
        (None, b"", None),
    ],
)
def test_early_exit_ends_access_and_not_the_request(tmp_path, body, content, content_type):
    """Access handlers below are skipped; header_filter and log run for every plugin."""  # R7
    with served(tmp_path, First, Second, configs={"first": {"body": body}}.items()) as gateway:
        answer = gateway.request()
        gateway.wait_requests(1)
        log = gateway.log.read_text()

    assert (answer.status, answer.content) == (418, content)
    assert (answer.headers["Content-Type"], answer.headers["Content-Length"]) == (content_type, str(len(content)))
    assert (answer.headers["X-Early"], answer.headers["X-Exit"]) == ("yes", "1")
    assert (answer.headers["X-Second"], answer.headers["X-Source"]) == ("418", "exit")
    assert "second log" in log
    assert "second access" not in log
    assert "caught" not in log


class Refuses(Base):
    """Answers with an error in the form that the client takes."""

    async def rewrite(self, kong, _conf):
        """Refuse."""
        await kong.ngx.sleep(0)
        kong.response.error(403, "not you")


@pytest.mark.parametrize(
    ("accept", "content_type", "begins"),
    [
        ("*/*", "application/json; charset=utf-8", b'{\n  "message":"not you"'),
        ("text/html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("application/xml;q=0.9, text/plain;q=0.1", "application/xml; charset=utf-8", b"<?xml"),
        ("text/plain", "text/plain; charset=utf-8", b"not you\n"),
    ],
)
def test_error_is_told_in_the_form_that_the_client_accepts(tmp_path, accept, content_type, begins):
    """JSON, HTML, XML or plain text, as the Accept header ranks them; JSON where it names none."""
    with served(tmp_path, Refuses) as gateway:
        answer = gateway.request(headers={"Accept": accept})

    assert (answer.status, answer.headers["Content-Type"]) == (403, content_type)
    assert answer.content.startswith(begins)


class Replaces(Base):
    """Puts another answer in the place of the service's when its head has come."""

    def header_filter(self, kong, _conf):
        """Answer."""
        kong.response.exit(299, b"instead", {"X-Instead": "1"})


def test_answer_of_a_header_filter_takes_the_place_of_the_services(tmp_path):
    """Status, headers and body are the plugin's, though the service's body was on its way."""
    with served(tmp_path, Replaces) as gateway:
        answer = gateway.request()

    assert (answer.status, answer.content, answer.headers["X-Instead"]) == (299, b"instead", "1")


class Fails(Base):
    """Raises in the phase that it is configured with; in log it tells that log runs."""

    PRIORITY = 50

    async def access(self, _kong, conf):
        """Raise when told so."""
        if conf["phase"] == "access":
            raise RuntimeError("boom")

    def header_filter(self, _kong, conf):
        """Raise when told so."""
        if conf["phase"] == "header_filter":
            raise RuntimeError("boom")

    def body_filter(self, _kong, conf):
        """Raise when told so."""
        if conf["phase"] == "body_filter":
            raise RuntimeError("boom")

    def log(self, kong, conf):
        """Raise when told so."""
        kong.log.err(f"log runs, status {kong.response.get_status()}")
        if conf["phase"] == "log":
            raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("phase", "line", "answer", "status"),
    [
        (
            "access",
            "lua entry thread aborted: runtime error: access_by_lua({}): [fails] RuntimeError: boom",
            b"HTTP/1.1 500",
            500,
        ),
        (
            "header_filter",
            "failed to run header_filter_by_lua*: header_filter_by_lua({}): [fails] RuntimeError: boom",
            b"",
            200,
        ),
        (
            "body_filter",
            "failed to run body_filter_by_lua*: body_filter_by_lua({}): [fails] RuntimeError: boom",
            b"",
            200,
        ),
        ("log", "failed to run log_by_lua*: log_by_lua({}): [fails] RuntimeError: boom", b"HTTP/1.1 200", 200),
    ],
)
def test_error_of_a_handler_stands_in_the_log_as_nginx_writes_it(tmp_path, phase, line, answer, status):
    """Phase, place, error and request; the log phase runs with the status as it was."""  # R6
    with served(tmp_path, Fails, configs={"fails": {"phase": phase}}.items()) as gateway:
        received = gateway.exchange(b"GET /x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        gateway.wait_requests(1)
        log = gateway.log.read_text()

    method = getattr(Fails, phase)
    place = f"{__file__}:{method.__code__.co_firstlineno + (4 if phase == 'log' else 3)}"
    request = ', client: 127.0.0.1, server: kong, request: "GET /x HTTP/1.1"'
    assert received[:12] == answer
    assert "[error] " in log
    assert line.format(place) + request in log
    assert f"[fails] log runs, status {status}" in log


class Cancels(Base):
    """Waits for a task that it has cancelled."""

    async def access(self, kong, _conf):
        """Wait."""
        look_up = asyncio.ensure_future(kong.ngx.sleep(3600))
        look_up.cancel()
        await look_up


def test_handler_that_waits_for_a_cancelled_task_has_raised(tmp_path):
    """The gateway has cancelled nothing, so the request ends as after any other exception."""  # R6
    with served(tmp_path, Cancels) as gateway:
        received = gateway.exchange(b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        gateway.wait_requests(1)
        log = gateway.log.read_text()

    assert received.startswith(b"HTTP/1.1 500 ")
    assert "lua entry thread aborted: runtime error: access_by_lua(" in log
    assert "): [cancels] CancelledError: " in log


def test_client_that_goes_away_while_a_handler_waits_is_499_when_that_has_ended(tmp_path):
    """nginx looks at the client again when the handler has ended; the log phase runs once, after it."""  # E5
    release = socket.create_server(("127.0.0.1", 0))

    class Waits(Base):
        async def access(self, kong, conf):
            sock = kong.ngx.socket.tcp()
            assert await sock.connect("127.0.0.1", conf["port"]) == (1, None)
            kong.log.err(f"received {await sock.receive()}")

        def log(self, kong, _conf):
            kong.log.err(f"log after access, status {kong.response.get_status()}")

    with release, served(tmp_path, Waits, configs={"waits": {"port": release.getsockname()[1]}}.items()) as gateway:
        client = gateway.connect()
        client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
        handler, _ = release.accept()
        client.close()
        # Whoever answers this has seen the end of the other connection too.
        assert gateway.exchange(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        handler.sendall(b"go on\r\n")
        gateway.wait_until(
            lambda reading: not reading.sum("requests_active") and "log after" in gateway.log.read_text()
        )
        log = gateway.log.read_text()
        handler.close()

    assert log.index("received (b'go on', None, b'')") < log.index("log after access, status 499")


# Bodies.


class Reads(Base):
    """Reads the client's body and sends another one to the service."""

    async def access(self, kong, _conf):
        """Read, tell, replace."""
        body, error, mimetype = await kong.request.get_body()
        kong.service.request.set_headers({"X-Body": repr(body), "X-Error": str(error), "X-Type": str(mimetype)})
        await kong.service.request.set_raw_body(b"other")


def form(content_type, content):
    """A form of one field, with what a browser may write around it."""
    head = b'Content-Disposition: form-data; name="f"; filename="a"\r\nContent-Type: ' + content_type
    return b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n--x--  \r\nand more"


DEEP_PARTS = b"".join(b"--%d\r\nContent-Type: multipart/mixed; boundary=%d\r\n\r\n" % (n, n + 1) for n in range(2000))


@pytest.mark.parametrize(
    ("content_type", "body", "read", "error"),
    [
        ("application/json", b'{"a": [1, 2]}', {"a": [1, 2]}, None),
        ("application/json", b"{", None, "invalid json body"),
        (
            "application/x-www-form-urlencoded; charset=utf-8",
            b"a=1&a=%20&b&c=",
            {"a": ["1", " "], "b": True, "c": ""},
            None,
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n--x--\r\n',
            {"f": b"v"},
            None,
        ),
        ("application/json", b"[" * 100_000, None, "invalid json body"),
        ("application/json", b"[" * 1001 + b"]" * 1001, None, "invalid json body"),
        ("multipart/form-data; boundary=0", DEEP_PARTS, {}, None),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: a; b*\r\n\r\n--x--", None, "invalid multipart body"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: a; b*\r\n--x--",
            None,
            "invalid multipart body",
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: %b\r\n\r\n--x--" % (b"(" * 5000),
            None,
            "invalid multipart body",
        ),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n--y--", None, "invalid multipart body"),
        ("multipart/form-data", b"--x\r\n\r\n--x--", None, "invalid multipart body"),
        ("multipart/form-data; boundary=x", form(b"message/rfc822", b"A: b\r\n\r\nc"), {"f": b"A: b\r\n\r\nc"}, None),
        (
            "multipart/form-data; boundary=x",
            form(b"multipart/mixed; boundary=y", b"--y\r\n\r\nc\r\n--y--"),
            {"f": b"--y\r\n\r\nc\r\n--y--"},
            None,
        ),
        (
            "multipart/form-data; boundary=x",
            form(b"text/plain", b"\n--xy\r\n-\xff\r\n"),
            {"f": b"\n--xy\r\n-\xff\r\n"},
            None,
        ),
        ("multipart/form-data; boundary=x", b"\r\n" + form(b"text/plain", b"") * 2, {"f": b""}, None),
        ("text/csv", b"1,2", None, "unsupported content type 'text/csv'"),
    ],
)
def test_body_is_read_as_its_type_says_and_may_be_replaced(tmp_path, content_type, body, read, error):
    """A form, JSON or parts become a mapping; what the service gets is the other body, counted anew."""
    with served(tmp_path, Reads) as gateway:
        asked = told(gateway.request("POST", "/", body, {"Content-Type": content_type}))

    assert (asked["headers"]["x-body"], asked["headers"]["x-error"]) == (repr(read), str(error))
    assert asked["headers"]["x-type"] == content_type.partition(";")[0]
    assert (asked["body"], asked["headers"]["content-length"]) == ("other", "5")


def test_body_that_comes_in_pieces_is_awaited_as_a_whole(tmp_path):
    """The handler goes on when the last piece has come, also when the client waits for leave to send it."""
    with served(tmp_path, Reads) as gateway, gateway.connect() as client, client.makefile("rb") as answer:
        head = b"POST / HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        client.sendall(head + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        answer.readline()
        for piece in (b"2\r\n[1\r\n", b"3\r\n, 2\r\n", b"1\r\n]\r\n"):
            client.sendall(piece)
        client.sendall(b"0\r\n\r\n")
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        assert b'["X-Body", "[1, 2]"]' in answer.read().replace(b'"x-body"', b'"X-Body"')


class Shouts(Base):
    """Turns the answer into capitals, as a whole."""

    def header_filter(self, kong, _conf):
        """Leave the length to be found out."""
        kong.response.clear_header("Content-Length")

    def body_filter(self, kong, _conf):
        """Hold the parts back; with the last one, replace them all."""
        body = kong.response.get_raw_body()
        if body is not None:
            kong.response.set_raw_body(body.upper() + b"!")


@pytest.mark.parametrize("path", ["/quiet", "/chunked"])
def test_body_filter_may_hold_the_parts_back_and_replace_them(tmp_path, path):
    """Counted or in chunks, the client gets the new body whole, in a framing that is true."""
    with served(tmp_path, Shouts) as gateway:
        answer = gateway.request("POST", path, b"x" * 100_000)
        again = gateway.request("GET", path)

    assert answer.content.startswith(b'{"METHOD": "POST"')
    assert b"X" * 100_000 in answer.content
    assert answer.content.endswith(b"}!")
    assert again.content.endswith(b"}!")


class Greets(Base):
    """Puts a text in the place of the answer as soon as the first part of it passes."""

    def header_filter(self, kong, _conf):
        """Leave the length open."""
        kong.response.clear_header("Content-Length")

    def body_filter(self, kong, conf):
        """Set it."""
        kong.ctx.plugin["runs"] = kong.ctx.plugin.get("runs", 0) + 1
        kong.response.set_raw_body(conf["text"])
        assert kong.ngx.arg[2]

    def log(self, kong, _conf):
        """Tell how often that was."""
        kong.log.notice("body_filter ran ", kong.ctx.plugin["runs"], " times")


@pytest.mark.parametrize(("text", "content"), [("Hello, world!", b"Hello, world!"), ("", b"\n")])
@pytest.mark.parametrize("path", ["/quiet", "/chunked"])
def test_body_that_is_set_ends_the_answer(tmp_path, path, text, content):
    """What follows of the service's is dropped, and no filter sees it; an empty text is a line feed (Kong)."""
    with served(tmp_path, Greets, configs={"greets": {"text": text}}.items()) as gateway:
        assert gateway.request("GET", path).content == content
        gateway.wait_logged("body_filter ran 1 times")


class Swaps(Base):
    """Sets the last part of the body to something else."""

    def header_filter(self, kong, _conf):
        """Leave the length open."""
        kong.response.clear_header("Content-Length")

    def body_filter(self, kong, conf):
        """Set it."""
        if kong.ngx.arg[2]:
            kong.ngx.arg[1] = conf["part"]


@pytest.mark.parametrize(("part", "end"), [("z\u00e4", b"}z\xc3\xa4"), (b"z", b"}z"), (None, b"}")])
def test_part_of_the_body_may_be_set_to_text_bytes_or_nothing(tmp_path, part, end):
    """`ngx.arg[1]` takes all three."""
    with served(tmp_path, Swaps, configs={"swaps": {"part": part}}.items()) as gateway:
        assert gateway.request().content.endswith(end)


def test_part_of_the_body_that_is_neither_is_refused_in_nginxs_words(tmp_path):
    """The connection is closed, and nobody waits."""
    with served(tmp_path, Swaps, configs={"swaps": {"part": [1]}}.items()) as gateway:
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            gateway.request()
        assert "ApiError: bad chunk data type: list" in gateway.wait_logged("failed to run body_filter_by_lua*")


class Buffers(Base):
    """Works on the whole answer before anything of it goes to the client."""

    async def response(self, kong, conf):
        """Wait, look at what the service says, and change it."""
        await kong.ngx.sleep(0.001)
        assert kong.ngx.get_phase() == "access"
        body, _error = kong.service.response.get_body("application/json")
        kong.response.set_header("X-Service-Status", str(kong.service.response.get_status()))
        kong.response.set_header("X-Method", body["method"])
        if conf.get("replace"):
            kong.response.exit(201, {"was": body["path"]})


def test_response_handlers_see_the_whole_answer_of_the_service(tmp_path):
    """They may wait, read status, headers and body, and set headers; the client gets the service's body."""  # R1
    with served(tmp_path, Buffers, Second) as gateway:
        for path in ("/a", "/chunked"):
            answer = gateway.request("GET", path)
            assert json.loads(answer.content)["path"] == path
            assert (answer.headers["X-Service-Status"], answer.headers["X-Method"]) == ("200", "GET")
            assert answer.headers["X-Second"] == "200"
            assert answer.headers["Content-Length"] == str(len(answer.content))


def test_response_handler_may_answer_itself(tmp_path):
    """What it exits with takes the place of the service's answer."""
    with served(tmp_path, Buffers, configs={"buffers": {"replace": True}}.items()) as gateway:
        answer = gateway.request("GET", "/a")

    assert (answer.status, json.loads(answer.content)) == (201, {"was": "/a"})


def test_response_handler_that_raises_is_500_without_anything_of_the_services(tmp_path):
    """The client gets the gateway's message alone, and the log phase runs."""  # R6

    class Breaks(Base):
        def response(self, kong, _conf):
            kong.response.set_header("X-Half", "1")
            raise RuntimeError("boom")

    with served(tmp_path, Breaks, Second) as gateway:
        answer = gateway.request()
        gateway.wait_requests(1)
        log = gateway.log.read_text()

    assert (answer.status, json.loads(answer.content)["message"]) == (500, "An unexpected error occurred")
    assert (answer.headers["X-Half"], answer.headers["Server"], answer.headers["X-Second"]) == (None, None, "500")
    assert "runtime error: access_by_lua(" in log
    assert "second log" in log


class Collects(Base):
    """Has the answer buffered from the phase on that the query names, and tells how long its body is."""

    def rewrite(self, kong, _conf):
        """Ask for it."""
        self.ask(kong, "rewrite")

    def access(self, kong, _conf):
        """Ask for it."""
        self.ask(kong, "access")

    def ask(self, kong, phase):
        """Do so, when it is the phase."""
        if kong.request.get_query_arg("in") == phase:
            kong.service.request.enable_buffering()

    def header_filter(self, kong, _conf):
        """Tell."""
        try:
            kong.response.set_header("X-Size", len(kong.service.response.get_raw_body()))
        except ApiError as error:
            kong.response.set_header("X-Size", str(error))


@pytest.mark.parametrize("phase", ["rewrite", "access"])
def test_plugin_may_have_the_answer_buffered(tmp_path, phase):
    """Also before the route is known; of other requests nothing is kept."""
    with served(tmp_path, Collects) as gateway:
        answer = gateway.request("GET", f"/chunked?in={phase}")
        other = gateway.request("GET", "/chunked")

    assert answer.headers["X-Size"] == answer.headers["Content-Length"] == str(len(answer.content))
    assert "only available with buffered proxying" in other.headers["X-Size"]


class Weighs(Base):
    """Tells how long the body of the service's answer is."""

    def response(self, kong, _conf):
        """Tell."""
        kong.response.set_header("X-Size", len(kong.service.response.get_raw_body()))


@pytest.mark.parametrize(
    ("method", "head", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", "1234"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n", "1234"),
    ],
)
def test_buffered_answer_that_comes_without_its_body_tells_the_length_of_that_alone(tmp_path, method, head, length):
    """Which only the service knows (RFC 9110 8.6)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        gateway = gateway_to(server.getsockname()[1], plugins=(Plugin(name="weighs"),))
        with live(tmp_path, gateway, {"weighs": Weighs}) as gateway, ThreadPoolExecutor(1) as client:
            answer = client.submit(gateway.request, method)
            upstream, _ = server.accept()
            upstream.recv(65536)
            upstream.sendall(head)
            headers = answer.result(TIMEOUT_S).headers
            upstream.close()

    assert (headers["Content-Length"], headers["X-Size"]) == (length, "0")


def test_buffered_answer_that_breaks_off_is_502(tmp_path):
    """Nothing of half an answer goes to the client, and it is not asked for again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        gateway = gateway_to(server.getsockname()[1], plugins=(Plugin(name="buffers"),))
        with live(tmp_path, gateway, {"buffers": Buffers}) as gateway, ThreadPoolExecutor(1) as client:
            answer = client.submit(gateway.request)
            upstream, _ = server.accept()
            upstream.recv(65536)
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            upstream.close()
            assert answer.result(TIMEOUT_S).status == 502


# The service.


class Redirects(Base):
    """Changes all that can be changed of the request to the service."""

    def access(self, kong, conf):
        """Change it."""
        kong.service.set_target("127.0.0.1", conf["port"])
        kong.service.request.set_method("put")
        kong.service.request.set_path("/other")
        kong.service.request.set_query({"b": ["1", "2"], "a": True})
        kong.service.request.set_header("Host", "there.example")
        kong.service.request.set_header("X-One", 1)
        kong.service.request.add_header("X-Many", "1")
        kong.service.request.add_header("X-Many", "2")
        kong.service.request.clear_header("X-Mine")
        assert kong.service.set_upstream("nowhere") == (None, "could not find an Upstream named 'nowhere'")


def test_plugin_may_change_target_and_request(tmp_path):
    """Another target, method, path, query, Host and headers reach it as they were set."""
    with echo() as other, served(tmp_path, Redirects, configs={"redirects": {"port": other}}.items()) as gateway:
        answer = gateway.request("GET", "/first?x=y", headers={"X-Mine": "1"})
        asked = json.loads(answer.content)

    headers = [(name.lower(), value) for name, value in asked["headers"]]
    assert (asked["method"], asked["path"]) == ("PUT", "/other?a&b=1&b=2")
    assert ("host", "there.example") in headers
    assert ("x-one", "1") in headers
    assert [value for name, value in headers if name == "x-many"] == ["1", "2"]
    assert "x-mine" not in dict(headers)


class Renames(Base):
    """Asks the service with the method that the query names."""

    def access(self, kong, _conf):
        """Set it."""
        kong.service.request.set_method(kong.request.get_query_arg("as"))


@pytest.mark.parametrize(("method", "other"), [("GET", "HEAD"), ("HEAD", "GET")])
def test_answer_fits_the_method_that_each_side_has_been_asked_with(tmp_path, method, other):
    """Nobody waits for a body that does not come, or takes one for the next answer."""
    with served(tmp_path, Renames) as gateway:
        for _ in range(2):
            answer = gateway.request(method, f"/?as={other}")
            assert (answer.status, answer.content) == (200, b"")
        gateway.wait_requests(2)
        assert "[error]" not in gateway.log.read_text()


class Steers(Base):
    """Makes the calls that the configuration names, of `kong.service`."""

    def access(self, kong, conf):
        """Call."""
        for name, *arguments in conf["calls"]:
            getattr(kong.service, name)(*arguments)


@pytest.mark.parametrize("host", ["upstream", "127.0.0.1"])
@pytest.mark.parametrize("call", [("set_upstream", "pool"), ("set_target", "localhost")])
def test_plugin_may_name_another_upstream_or_host(tmp_path, host, call):
    """It is asked in place of the service's, whether that is a name or an address."""
    with echo() as other:
        calls = [call if call[0] == "set_upstream" else (*call, other)]
        pool = Upstream(name="pool", targets=({"target": f"127.0.0.1:{other}"},))
        options = {"service": {"host": host, "port": 1}, "upstreams": (pool,), "hosts": {}}
        with served(tmp_path, Steers, configs={"steers": {"calls": calls}}.items(), **options) as gateway:
            asked = told(gateway.request())

    assert asked["headers"]["host"] == (f"127.0.0.1:{other}" if call[0] == "set_upstream" else "localhost")


@pytest.mark.parametrize(("host", "told_host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_target_that_a_plugin_sets_is_called_by_its_host_alone(tmp_path, host, told_host):
    """Also where the route preserves the client's Host: Kong writes it where that would stand."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        calls = {"steers": {"calls": [("set_target", host, server.getsockname()[1])]}}
        route = {"preserve_host": True}
        with (
            served(tmp_path, Steers, configs=calls.items(), route=route) as gateway,
            ThreadPoolExecutor(1) as client,
        ):
            answer = client.submit(gateway.request)
            upstream, _ = server.accept()
            head = upstream.recv(65536)
            upstream.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            upstream.close()
            assert answer.result(TIMEOUT_S).status == 204

    assert f"\r\nHost: {told_host}\r\n".encode() in head


def test_timeouts_that_a_plugin_sets_hold_for_the_request(tmp_path):
    """A service that is silent for longer is given up with 504, as often as the plugin lets it be tried."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        calls = [("set_timeouts", 5_000, 5_000, 100), ("set_retries", 0)]
        plugins = (Plugin(name="steers", config={"calls": calls}),)
        with live(tmp_path, gateway_to(silent.getsockname()[1], plugins=plugins), {"steers": Steers}) as gateway:
            assert gateway.request().status == 504
            log = gateway.log.read_text()

    assert log.count("upstream timed out (110: Connection timed out) while reading response header") == 1


class Cancelled(Base):
    """Looks in a phase at what was cancelled, which is an error that `except Exception` does not catch."""

    def look(self, kong, phase):
        """Raise CancelledError."""
        if kong.request.get_query_arg("in") == phase:
            result = asyncio.get_running_loop().create_future()
            result.cancel()
            result.result()

    def header_filter(self, kong, _conf):
        """Look."""
        self.look(kong, "header_filter")

    def body_filter(self, kong, _conf):
        """Look."""
        self.look(kong, "body_filter")

    def log(self, kong, _conf):
        """Look."""
        self.look(kong, "log")


@pytest.mark.parametrize("phase", ["header_filter", "body_filter", "log"])
def test_cancellation_in_a_phase_that_does_not_wait_is_an_error_like_any_other(tmp_path, phase):
    """The request ends, and nobody waits for it."""
    with served(tmp_path, Cancelled) as gateway:
        if phase == "log":
            assert gateway.request("GET", f"/?in={phase}").status == 200
        else:
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                gateway.request("GET", f"/?in={phase}")
        gateway.wait_requests(1)
        assert f"failed to run {phase}_by_lua*" in gateway.log.read_text()


class PassesOn(Base):
    """Hands what the client has sent, of which not all is UTF-8, to a function that the query names."""

    async def access(self, kong, conf):
        """Hand it over."""
        path, arg = kong.request.get_path(), kong.request.get_query_arg("arg")
        match kong.request.get_query_arg("to"):
            case "exit":
                kong.response.exit(200, path + arg)
            case "filter":
                kong.ctx.shared["body"] = path + arg
            case "path":
                kong.service.request.set_path(path + arg)
            case "query":
                kong.service.request.set_query({path: arg})
            case "raw_query":
                kong.service.request.set_raw_query(path + arg)
            case "http":
                uri = f"http://127.0.0.1:{conf['port']}{kong.request.get_raw_path()}"
                answer, error = await kong.ngx.http.new().request_uri(uri, {"method": "POST", "body": path + arg})
                assert error is None
                kong.response.exit(200, answer.headers["content-length"])

    def header_filter(self, kong, _conf):
        """Leave the length open."""
        kong.response.clear_header("Content-Length")

    def body_filter(self, kong, _conf):
        """Hand it over."""
        body = kong.response.get_raw_body()
        if body is not None:
            kong.response.set_raw_body(kong.ctx.shared.get("body", body))


@pytest.mark.parametrize(
    ("way", "seen"),
    [
        ("exit", b"/\xc3\xff\xe2\x82\xac"),
        ("filter", b"/\xc3\xff\xe2\x82\xac"),
        ("path", b"/%C3%FF%E2%82%AC?to=path&arg=%ff%e2%82%ac"),
        ("query", b"/%C3?%2F%C3=%FF%E2%82%AC"),
        ("raw_query", b"/%C3?/%C3%FF%E2%82%AC"),
    ],
)
def test_what_is_no_utf_8_is_passed_on_as_it_came(tmp_path, way, seen):
    """To Kong all text is bytes: no client can make a plugin fail with one."""
    with served(tmp_path, PassesOn) as gateway:
        answer = gateway.request("GET", f"/%c3?to={way}&arg=%ff%e2%82%ac")
    assert answer.status == 200
    assert (answer.content if way in {"exit", "filter"} else json.loads(answer.content)["path"].encode()) == seen


def test_what_is_no_utf_8_is_sent_by_the_http_client(tmp_path):
    """In a body as in a header."""

    def answers(server):
        upstream, _ = server.accept()
        received = upstream.recv(65536)
        upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        upstream.close()
        return received

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as asked:
        received = asked.submit(answers, server)
        configs = {"passeson": {"port": server.getsockname()[1]}}
        with served(tmp_path, PassesOn, configs=configs.items()) as gateway:
            assert gateway.request("GET", "/%c3?to=http&arg=%ff").content == b"0"
        assert received.result(TIMEOUT_S).endswith(b"\r\n\r\n/\xc3\xff")


class Requests(Base):
    """Asks another server what the configuration says, and answers with what came of it."""

    async def access(self, kong, conf):
        """Ask."""
        said = []
        for path, params in conf["asks"]:
            answer, error = await kong.ngx.http.new().request_uri(f"http://127.0.0.1:{conf['port']}{path}", params)
            said.append(error or json.loads(answer.body)["path"])
        kong.response.exit(200, said)


class Relays(Base):
    """Asks another server with the headers that it was asked with, and answers with what that got."""

    async def access(self, kong, conf):
        """Ask."""
        headers = kong.request.get_headers() | {"x-number": 5, "X-FLAG": True, "x-none": None}
        params = {"method": "POST", "headers": headers, "body": "hello"}
        answer, error = await kong.ngx.http.new().request_uri(f"http://127.0.0.1:{conf['port']}/", params)
        kong.response.exit(200, answer.body if error is None else error)


def test_http_client_sends_each_header_once_and_each_of_several_values_in_a_line(tmp_path):
    """Names are the same in capitals and in small letters; how long the body is, is its own to say."""  # RFC 9110 5.1
    sent = (
        b"POST / HTTP/1.1\r\nHost: theirs\r\nUser-Agent: me\r\nX-Many: 1\r\nX-Many: 2\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    )
    with echo() as other, served(tmp_path, Relays, configs={"relays": {"port": other}}.items()) as gateway:
        answer = gateway.exchange(sent).partition(b"\r\n\r\n")[2]
        counted = gateway.request("POST", "/", b"three bytes less").content
    asked, again = json.loads(answer), json.loads(counted)

    names = ("host", "user-agent", "x-many", "transfer-encoding", "content-length", "x-number", "x-flag", "x-none")
    assert [[name.lower(), value] for name, value in asked["headers"] if name.lower() in names] == [
        ["host", "theirs"],
        ["user-agent", "me"],
        ["x-many", "1"],
        ["x-many", "2"],
        ["x-number", "5"],
        ["x-flag", "true"],
        ["content-length", "5"],
    ]
    assert [value for name, value in again["headers"] if name.lower() == "content-length"] == ["5"]
    assert (asked["body"], again["body"]) == ("hello", "hello")


def test_http_client_sends_one_request_whatever_it_is_told(tmp_path):
    """A query may be text or a mapping; what would end a line, and so begin another one, is refused."""
    asks = [
        ("/a?b", None, "/a?b"),
        ("/a?b", {"query": "c=1&d"}, "/a?c=1&d"),
        ("/a?b", {"query": {"c": 1}}, "/a?c=1"),
        ("/a", {"query": {"c d": [" ", 2], "e": True, "f": False}}, "/a?c%20d=%20&c%20d=2&e"),
        ("/a b", None, "bad uri: http://127.0.0.1:{port}/a b"),
        ("/a", {"query": "b\r\n"}, "bad uri: http://127.0.0.1:{port}/a"),
        ("/a", {"method": "get /x\r\n"}, "bad method: 'get /x\\r\\n'"),
        ("/a", {"headers": {"X": "1\r\nY: 2"}}, "bad header: x"),
        ("/a", {"method": "POST", "body": [5]}, "bad body: text expected, got list"),
    ]
    with echo() as other:
        config = {"port": other, "asks": [(path, params) for path, params, _said in asks]}
        with served(tmp_path, Requests, configs={"requests": config}.items()) as gateway:
            said = json.loads(gateway.request().content)

    assert said == [text.replace("{port}", str(other)) for _path, _params, text in asks]


WRONG_ARGUMENTS = {
    "service.set_upstream(3)": "host must be a string",
    "service.set_target(3, 80)": "host must be a string",
    "service.set_target('a\\r\\nX: 1', 80)": "invalid header value: 'a\\r\\nX: 1'",
    "service.set_target('there', True)": "port must be an integer",
    "service.set_target('there', 65_536)": "port must be an integer between 0 and 65535: given 65536",
    "service.set_retries('x')": "retries must be an integer",
    "service.set_timeouts(1, 1.5, 1)": "write_timeout must be an integer",
    "service.set_timeouts(0, 1, 1)": "connect_timeout must be an integer between 1 and 2147483646: given 0",
    "service.request.set_scheme(3)": "scheme must be a string",
    "service.request.set_path(3)": "path must be a string",
    "service.request.set_raw_query(None)": "query must be a string",
    "service.request.set_query('x')": "args must be a table",
    "service.request.set_query({1: 2})": "arg keys must be strings",
    "service.request.set_query({'a': None})": "attempt to use nil as query arg value",
    "service.request.set_method(3)": "method must be a string",
    "service.request.set_method('GET /')": "invalid method: 'GET /'",
    "service.request.set_header(3, 'x')": "invalid header name 3: got number, expected string",
    "service.request.set_header('A', None)": (
        'invalid header value for "A": got nil, expected array of string, string, number or boolean'
    ),
    "service.request.add_header('A', 'x\\r\\ny')": "invalid header value: 'x\\r\\ny'",
    "service.request.clear_header(3)": "header must be a string",
    "service.request.set_headers('x')": "headers must be a table",
    "service.request.set_raw_body(3)": "body must be a string",
    "service.request.set_body('x')": "args must be a table",
    "service.request.set_body({'a': object()}, 'application/json')": (
        "Cannot serialise args: Cannot serialise object: type not supported"
    ),
    "request.get_header(3)": "header name must be a string",
    "request.get_query_arg(None)": "query argument name must be a string",
    "request.get_query('x')": "max_args must be a number",
    "request.get_query(0)": "max_args must be >= 1",
    "request.get_query(1_001)": "max_args must be <= 1000",
    "request.get_headers('x')": "max_headers must be a number",
    "request.get_headers(0)": "max_headers must be >= 1",
    "request.get_headers(1_001)": "max_headers must be <= 1000",
    "timer.at(float('nan'), print)": "delay must be finite",
    "timer.at(float('inf'), print)": "delay must be finite",
    "timer.at(1e306, print)": "delay must be finite",
    "timer.every(10**400, print)": "delay must be finite",
    "response.set_status('x')": "code must be a number",
    "response.set_header('A:', 'x')": "invalid header name: 'A:'",
    "response.set_header('A\\r\\nB', 'x')": "invalid header name: 'A\\r\\nB'",
    "response.add_header('A', {})": (
        'invalid header value for "A": got table, expected array of string, string, number or boolean'
    ),
    "response.clear_header(3)": "header name must be a string",
    "response.set_headers([])": "headers must be a table",
    "response.exit(99)": "code must be a number between 100 and 599",
    "response.exit(200, 5)": "body must be a nil, string or table",
    "response.exit(200, None, 'x')": "headers must be a nil or table",
    "response.exit(200, {'a': object()})": (
        "body encoding failed while flushing response: Cannot serialise object: type not supported"
    ),
    "response.exit(200, {'a': float('inf')})": (
        "body encoding failed while flushing response: Cannot serialise number: must not be NaN or Infinity"
    ),
    "service.request.set_body({'a': float('nan')}, 'application/json')": (
        "Cannot serialise args: Cannot serialise number: must not be NaN or Infinity"
    ),
    "node.get_memory_stats('x')": "invalid unit 'x' (expected 'k/K', 'm/M', or 'g/G')",
    "node.get_memory_stats('M', -1)": "scale must be an integer between 0 and 20: given -1",
    "response.error('x')": "code must be a number",
    "response.error(399)": "code must be a number between 400 and 599",
    "response.error(400, 5)": "message must be a nil or string",
}


class Errs(Base):
    """Makes the calls that the configuration names, and answers with what they say."""

    async def access(self, kong, conf):
        """Call."""
        said = {}
        for call in conf["calls"]:
            try:
                given = eval(f"kong.{call}", {"kong": kong})
                said[call] = await given if asyncio.iscoroutine(given) else given
            except Exception as error:  # noqa: BLE001 - it is what is looked for
                said[call] = f"{type(error).__name__}: {error}"
        kong.response.exit(200, said)


def test_plugin_says_how_many_headers_it_looks_at(tmp_path):
    """The first lines that the client has sent."""
    calls = ["request.get_headers(1)", "request.get_headers(3)"]
    with served(tmp_path, Errs, configs={"errs": {"calls": calls}}.items()) as gateway:
        sent = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\nY: 3\r\nConnection: close\r\n\r\n"
        said = json.loads(gateway.exchange(sent).partition(b"\r\n\r\n")[2])

    assert said == {calls[0]: {"host": "a"}, calls[1]: {"host": "a", "x": ["1", "2"]}}


def test_wrong_argument_is_refused_by_the_call_in_kongs_words(tmp_path):
    """Nothing of it goes out, and nobody waits for an answer that cannot be written."""
    with served(tmp_path, Errs, configs={"errs": {"calls": [*WRONG_ARGUMENTS]}}.items()) as gateway:
        said = json.loads(gateway.request().content)

    assert said == {call: f"ApiError: {message}" for call, message in WRONG_ARGUMENTS.items()}


class Names(Base):
    """Sets headers for the service and for the client in all ways that there are."""

    def access(self, kong, _conf):
        """Set those for the service."""
        kong.service.request.set_headers({"Host": "there.example", "X-Many": ["1", True]})
        kong.service.request.add_header("X-Many", [2])

    def header_filter(self, kong, _conf):
        """Set those for the client."""
        kong.response.add_header("X_Many", ["1", "2"])
        kong.response.add_header("Transfer-Encoding", "gzip")
        kong.response.set_header("Connection", "close")


def test_headers_may_have_several_values_and_none_that_the_gateway_writes_itself(tmp_path):
    """A list is several lines, `Host` counts also among several headers, and a wish to close closes."""
    with served(tmp_path, Names) as gateway:
        answer = gateway.request()
    headers = [(name.lower(), value) for name, value in json.loads(answer.content)["headers"]]

    assert ("host", "there.example") in headers
    assert [value for name, value in headers if name == "x-many"] == ["1", "true", "2"]
    assert answer.headers.get_all("X-Many") == ["1", "2"]
    assert answer.headers.get_all("Connection") == ["close"]
    assert answer.headers["Transfer-Encoding"] is None


class Bodiless(Base):
    """Gives the answer a status, or a method, that has no body, and a body all the same."""

    def access(self, kong, _conf):
        """Answer, when told so in the query."""
        status = kong.request.get_query_arg("exit")
        if status is not None:
            kong.response.exit(int(status), "body")

    def header_filter(self, kong, _conf):
        """Change the status of the service's answer."""
        status = kong.request.get_query_arg("status")
        if status is not None:
            kong.response.set_status(int(status))

    def body_filter(self, kong, _conf):
        """Replace the body."""
        if kong.ngx.arg[2]:
            kong.response.set_raw_body("body")


@pytest.mark.parametrize(
    "asked", ["GET /?exit=204", "GET /?exit=304", "GET /?status=204", "GET /?status=304", "HEAD /"]
)
def test_answer_that_must_not_have_a_body_has_none(tmp_path, asked):
    """The next answer on the connection begins where its client looks for it; nginx drops the body too."""
    with served(tmp_path, Bodiless) as gateway:
        first, next_one = f"{asked} HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?exit=403 HTTP/1.1\r\nHost: a\r\n"
        data = gateway.exchange(f"{first}{next_one}Connection: close\r\n\r\n".encode())
    head, _, rest = data.partition(b"\r\n\r\n")

    assert rest.startswith(b"HTTP/1.1 403 ")
    assert (b"Content-Length" in head) == ("204" not in asked)


def test_interim_status_of_a_plugins_answer_ends_the_connection(tmp_path):
    """A client takes it for one that another answer follows, so none does."""
    with served(tmp_path, Bodiless) as gateway:
        data = gateway.exchange(b"GET /?exit=101 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")

    assert data.startswith(b"HTTP/1.1 101 ")
    assert data.endswith(b"\r\nConnection: close\r\n\r\n")


class Early(Base):
    """Sets headers of the answer before the service is asked, of which an answer can have one only."""

    def access(self, kong, _conf):
        """Set them."""
        kong.response.set_headers({"Content-Length": 3, "Content-Type": "text/x", "X-Early": "1"})
        if kong.request.get_path() == "/exit":
            kong.response.exit(200, "body", {"Server": "mine"})


@pytest.mark.parametrize("path", ["/", "/exit"])
def test_header_that_an_answer_has_once_is_the_one_that_the_answer_is_written_with(tmp_path, path):
    """The service's Content-Length and Content-Type, or the gateway's Server, replace what a plugin has set before."""
    with served(tmp_path, Early) as gateway:
        answer = gateway.request("GET", path)

    assert answer.headers["X-Early"] == "1"
    assert answer.headers.get_all("Content-Length") == [str(len(answer.content))]
    assert len(answer.headers.get_all("Server")) == 1
    assert answer.content.startswith(b"{" if path == "/" else b"body")


class Asks(Base):
    """Tells the client what `kong.request` says."""

    def access(self, kong, _conf):
        """Tell."""
        request = kong.request
        kong.response.exit(
            200,
            {
                "path": request.get_path(),
                "raw": request.get_raw_path(),
                "query": request.get_query(),
                "arg": request.get_query_arg("a"),
                "raw_query": request.get_raw_query(),
                "header": request.get_header("X_Mine"),
                "host": request.get_host(),
                "port": request.get_port(),
                "version": request.get_http_version(),
                "forwarded": [
                    request.get_forwarded_scheme(),
                    request.get_forwarded_host(),
                    request.get_forwarded_port(),
                    request.get_forwarded_path(),
                ],
                "client": kong.client.get_ip(),
                "started": request.get_start_time(),
                "captures": request.get_uri_captures(),
                "route": kong.router.get_route().name,
                "service": kong.router.get_service().name,
                "worker": [kong.ngx.worker.id(), kong.ngx.worker.count(), kong.ngx.worker.exiting()],
                "memory": kong.node.get_memory_stats("b")["workers_lua_vms"][0]["http_allocated_gc"],
                "node": kong.node.get_id(),
            },
        )


def test_request_is_told_as_kong_tells_it(tmp_path):
    """Paths are normalised, arguments decoded, captures of the route named."""
    route = {"paths": (r"~/t/(?<name>\w+)",)}
    with served(tmp_path, Asks, route=route) as gateway:
        answer = gateway.request(
            "GET", "/t/x%41/a//../b%2f?a=1&a=%20&c", headers={"X-Mine": "m", "Host": "G.example:80"}
        )
        said = json.loads(answer.content)

    assert (said["path"], said["raw"]) == ("/t/xA/b%2F", "/t/x%41/a//../b%2f")
    assert (said["query"], said["arg"], said["raw_query"]) == ({"a": ["1", " "], "c": True}, "1", "a=1&a=%20&c")
    assert (said["header"], said["host"], said["port"]) == ("m", "g.example", gateway.port)
    assert (said["version"], said["forwarded"]) == (1.1, ["http", "g.example", gateway.port, said["path"]])
    assert (said["client"], said["captures"]["named"]) == ("127.0.0.1", {"name": "xA"})
    assert (said["route"], said["service"], said["worker"]) == ("all", "orders", [0, 1, False])
    assert said["memory"] > 1_000_000
    assert len(said["node"]) == 36
    assert said["started"] > 1_700_000_000_000


@pytest.mark.parametrize(("sent", "text"), [("%C3%BC", "\xfc"), ("%ff", "\udcff")])
def test_captures_and_what_proxies_say_are_text_like_the_path(tmp_path, sent, text):
    """UTF-8; what is none stays as it came."""
    options = {"route": {"paths": (r"~/u/(?<a>[^/]+)",)}, "trusted_ips": ("127.0.0.1",)}
    with served(tmp_path, Asks, **options) as gateway:
        headers = {"X-Forwarded-Path": unquote(f"/{sent}", "latin-1")}
        content = gateway.request("GET", f"/u/{sent}", headers=headers).content
        said = json.loads(content.decode(errors="surrogateescape"))

    assert (said["path"], said["forwarded"][3]) == (f"/u/{text}", f"/{text}")
    assert said["captures"] == {"unnamed": [text], "named": {"a": text}}


# Timers.


class Ticks(Base):
    """Sets timers when the worker starts."""

    def init_worker(self, kong):
        """Tick, and leave something for much later."""
        kong.timer.every(0.01, self.tick, kong)
        kong.timer.at(3600, self.late, kong)

    def tick(self, premature, kong):
        """Tell."""
        kong.log.err(f"tick premature={premature} phase={kong.ngx.get_phase()} ctx={kong.ngx.ctx}")

    async def late(self, premature, kong):
        """Tell, and try what an exiting worker permits."""
        kong.log.err(f"late premature={premature} exiting={kong.ngx.worker.exiting()}")
        kong.log.err(f"at(1): {kong.timer.at(1, self.tick, kong)}")
        kong.log.err(f"at(0): {kong.timer.at(0, self.tick, kong)}")
        await kong.ngx.sleep(0.05)
        kong.log.err("late has ended")

    def log(self, _kong, _conf):
        """Take part."""


def test_timers_of_a_worker_that_leaves_expire_prematurely_and_are_waited_for(tmp_path):
    """`every` ends; what was due in an hour runs at once, and the worker stays until it has ended."""  # N3, N6, N8
    with served(tmp_path, Ticks) as gateway:
        gateway.wait_until(lambda _reading: gateway.log.read_text().count("tick premature=False") >= 2)
        gateway.stop()
        log = gateway.log.read_text()

    assert "tick premature=False phase=timer ctx={}" in log
    assert log.count("tick premature=True") == 1
    assert "late premature=True exiting=True" in log
    assert "at(1): (None, 'process exiting')" in log
    assert "at(0): (True, None)" in log
    assert log.index("late has ended") < log.index("[notice]", log.index("late has ended"))


# Instrumentations.


class Works(Base):
    """Uses all that makes spans: a database, name resolution, an HTTP client."""

    PRIORITY = 50

    async def rewrite(self, _kong, _conf):
        """Take part."""

    async def access(self, kong, conf):
        """Use them."""
        rows, error = await kong.db.query("SELECT 1 AS one")
        assert (rows, error) == ([{"one": 1}], None)
        assert (await kong.db.query("SELEKT"))[0] is None
        client = kong.ngx.http.new()
        answer, error = await client.request_uri(
            f"http://localhost:{conf['port']}/asked?a=b", {"headers": {"X-A": "1"}}
        )
        assert (error, answer.status, json.loads(answer.body)["path"]) == (None, 200, "/asked?a=b")
        answer, error = await client.request_uri(f"http://127.0.0.1:{conf['closed']}/", {"method": "POST", "body": "x"})
        assert (answer, error) == (None, "connection refused")


class Calls(Base):
    """Asks an https server, and tells what came of it."""

    async def access(self, kong, conf):
        """Ask as often as told."""
        told = []
        for _ in range(conf["times"]):
            answer, error = await kong.ngx.http.new().request_uri(conf["uri"], {"method": "POST", **conf["params"]})
            told.append(error or answer.body.decode())
        kong.response.exit(200, {"told": told})


@contextmanager
def asking(directory, authority, name, *, trusts=True, times=1, **params):
    """Run a gateway whose plugin asks a server with a certificate of this name; give what it is told."""
    file = directory / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with recording_collector(authority.issue_cert(name)) as server:
        config = {"uri": f"https://localhost:{server.port}/", "times": times, "params": params}
        nginx = Nginx(lua_ssl_trusted_certificate=str(file) if trusts else "system")
        with served(directory, Calls, configs={"calls": config}, nginx=nginx, log_level="info") as gateway:
            yield gateway, lambda: json.loads(gateway.request().content)["told"]


@pytest.fixture(scope="module")
def authority():
    """An authority that the system does not know."""
    return trustme.CA()


def test_plugins_ask_https_servers(tmp_path, authority):
    """The certificate is checked against the configured authorities; the connection is kept for the next request."""
    with asking(tmp_path, authority, "localhost", times=2) as (gateway, told):
        assert told() == ["", ""]
        reading = gateway.stop()
        assert reading.sum("requests") == 1


@pytest.mark.parametrize(
    ("name", "trusts", "reason"),
    [
        ("localhost", False, "20: unable to get local issuer certificate"),
        ("other.test", True, "certificate host mismatch"),
    ],
)
def test_certificate_that_does_not_hold_is_refused(tmp_path, authority, name, trusts, reason):
    """The reason is nginx's; nothing is sent."""
    with asking(tmp_path, authority, name, trusts=trusts) as (_gateway, told):
        assert told() == [reason]


def test_certificate_is_not_checked_where_the_plugin_does_not_want_it(tmp_path, authority):
    """`ssl_verify` false takes any; `ssl_server_name` names another server than the URI. Neither passes for checked."""
    with asking(tmp_path, authority, "other.test", trusts=False, ssl_verify=False) as (_gateway, told):
        assert told() == [""]
    with asking(tmp_path, authority, "other.test", ssl_server_name="other.test") as (_gateway, told):
        assert told() == [""]


@contextmanager
def working(directory, closed, *words):
    """Run a traced gateway whose plugin does all that makes spans."""
    with echo() as other:
        plugins = (Plugin(name="works", config={"port": other, "closed": closed}),)
        tracing = {"instrumentations": words, "sampling_rate": 1.0}
        with traced_gateway(directory, plugins=plugins, classes={"works": Works}, tracing=tracing) as (
            gateway,
            collector,
        ):
            yield gateway, collector, other


def test_every_type_of_span_has_kongs_name_kind_parent_and_attributes(tmp_path):
    """Database, name resolution and HTTP client stand below the plugin's span."""  # I5-I11
    closed = peers.free_port()
    with working(tmp_path, closed, "all") as (gateway, collector, other):
        assert gateway.request().status == 200
        spans = collector.wait_spans(14)

    by_name = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    access = by_name["kong.access.plugin.works"][0]
    root = by_name["kong"][0]
    assert by_name["kong.rewrite.plugin.works"][0].parent_span_id == root.span_id
    queries = by_name["kong.database.query"]
    assert [(span.kind, attributes(span)) for span in queries] == [
        (1, {"db.system": "sqlite", "db.statement": "SELECT 1 AS one"}),
        (1, {"db.system": "sqlite", "db.statement": "SELEKT"}),
    ]
    assert {span.status.code for span in queries} == {0}
    good, bad = by_name["kong.internal.request"]
    assert (good.kind, bad.kind) == (3, 3)
    assert attributes(good) == {
        "http.url": f"http://localhost:{other}/asked?a=b",
        "http.method": "GET",
        "http.flavor": "1.1",
        "http.user_agent": attributes(good)["http.user_agent"],
        "http.status_code": 200,
    }
    assert [event.name for event in bad.events] == ["exception"]
    assert (attributes(bad)["http.method"], bad.status.code) == ("POST", 0)
    lookups = [span for span in by_name["kong.dns"] if attributes(span)["dns.record.domain"] == "localhost"]
    assert attributes(lookups[0]) == {
        "dns.record.domain": "localhost",
        "dns.record.port": other,
        "dns.record.ip": "127.0.0.1",
    }
    below = {span.name for span in spans if span.parent_span_id == access.span_id}
    assert below == {"kong.database.query", "kong.internal.request", "kong.dns"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("request", "db_query"), {"kong", "kong.database.query", "kong.internal.request"}),
        (("request", "all"), {"kong", "kong.internal.request"}),
        (("dns_query",), {"kong", "kong.dns", "kong.internal.request"}),
        (
            ("plugin_access",),
            {"kong", "kong.access.plugin.works", "kong.access.plugin.opentelemetry", "kong.internal.request"},
        ),
    ],
)
def test_only_the_listed_types_make_spans_but_for_the_http_client(tmp_path, words, names):
    """Only the first word is looked at for `all`; the HTTP client's spans come whatever is listed."""  # I2, I3, I12
    with working(tmp_path, 1, *words) as (gateway, collector, _other):
        assert gateway.request().status == 200
        reading = gateway.wait_requests(1)
        spans = collector.wait_spans(reading.ledger.acknowledged)

    assert {span.name for span in spans} == names


def test_switched_off_nothing_makes_spans(tmp_path):
    """The plugin works as ever, and not one span is made but the exporter's root."""  # I3, O12
    with working(tmp_path, 1, "off") as (gateway, _collector, _other):
        assert gateway.request().status == 200
        gateway.wait_requests(1)
        reading = gateway.stop()

    assert (reading.ledger.created, reading.ledger.unprocessed) == (1, 1)


# Starting.


class Broken(Base):
    """Fails when the worker starts."""

    def init_worker(self, _kong):
        """Raise."""
        raise RuntimeError("no init")

    def configure(self, kong, configs):
        """Tell what it is configured with."""
        kong.log.err(f"configured with {list(configs.values())}")

    def access(self, kong, _conf):
        """Take part."""
        kong.response.exit(200, b"serves")


def test_plugin_that_fails_at_the_start_of_a_worker_is_logged_and_the_worker_serves(tmp_path):
    """The other hook and the handlers run all the same."""
    with served(tmp_path, Broken, configs={"broken": {"a": 1}}.items()) as gateway:
        assert gateway.request().content == b"serves"
        log = gateway.log.read_text()

    assert "init_worker of plugin broken failed" in log
    assert "no init" in log
    assert "configured with [{'a': 1}]" in log


class Sleeps(Base):
    """Sleeps in access, and notes how it woke."""

    async def access(self, kong, conf):
        """Sleep as long as told, maybe from when the worker leaves."""
        kong.log.err("asleep")
        try:
            while conf.get("leaving") and not kong.ngx.worker.exiting():
                await kong.ngx.sleep(0.01)
            await kong.ngx.sleep(conf["s"])
            kong.log.err(f"awake, exiting={kong.ngx.worker.exiting()}")
        finally:
            kong.tracing.start_span("last").finish()


def asleep(gateway):
    """Send a request and wait until its handler sleeps."""
    client = gateway.connect()
    client.sendall(b"GET / HTTP/1.1\r\nHost: g\r\n\r\n")
    gateway.wait_until(lambda _reading: "asleep" in gateway.log.read_text())
    return client


def test_worker_that_is_terminated_leaves_a_sleeping_handler_behind(tmp_path):
    """The request is cut off, its spans are booked as lost, and nothing is said of the handler."""  # W2, E5
    with served(tmp_path, Sleeps, configs={"sleeps": {"s": 3600}}.items()) as gateway, asleep(gateway):
        reading = gateway.stop(SIGTERM)
        log = gateway.log.read_text()

    assert reading.ledger.unaccounted == 0
    assert reading.ledger.lost_in_request > 0
    assert "Traceback" not in log
    assert "lua entry thread aborted" not in log


def test_worker_that_leaves_waits_for_a_sleeping_handler(tmp_path):
    """It answers what it has begun, also after the shutdown timeout has closed the connection."""  # W12, W13
    nginx = {"worker_shutdown_timeout": "100ms"}
    configs = {"sleeps": {"s": 0.4, "leaving": True}}
    with served(tmp_path, Sleeps, configs=configs.items(), nginx=nginx) as gateway, asleep(gateway):
        reading = gateway.stop()
        log = gateway.log.read_text()

    assert "awake, exiting=True" in log
    assert reading.sum("responses_4xx") == 1
    assert reading.ledger.unaccounted == reading.ledger.open == 0


@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_large_body_is_read_as_a_whole_and_passed_on(tmp_path, framing):
    """Megabytes that a handler waits for do not stop half-way, and the service gets them all."""

    class Weighs(Base):
        async def access(self, kong, _conf):
            await kong.ngx.sleep(0.05)
            kong.service.request.set_header("X-Bytes", len(await kong.request.get_raw_body()))

    body = b"x" * 4_000_000
    pieces = body if framing == "counted" else iter([body[:3_000_000], body[3_000_000:]])
    with served(tmp_path, Weighs) as gateway:
        asked = told(gateway.request("POST", "/", pieces))

    assert (asked["headers"]["x-bytes"], len(asked["body"])) == ("4000000", 4_000_000)


@pytest.mark.parametrize("phase", ["rewrite", "access", "response", "header_filter", "body_filter", "log"])
@pytest.mark.parametrize("raises", [False, True])
def test_plugin_that_empties_ngx_ctx_leaves_no_client_waiting(tmp_path, phase, raises):
    """Its request is answered and ends, as after an error of the phase if it also raises."""  # R6

    def handler(_self, kong, _conf):
        kong.ngx.ctx.clear()
        if raises:
            raise ValueError("boom")

    with served(tmp_path, type("Emptying", (Base,), {phase: handler})) as gateway:
        if raises and phase.endswith("_filter"):
            with pytest.raises(http.client.RemoteDisconnected):
                gateway.request()
        else:
            assert gateway.request().status == (500 if raises and phase != "log" else 200)

        gateway.wait_until(lambda reading: reading.sum("requests") == 1 and not reading.sum("requests_active"))
