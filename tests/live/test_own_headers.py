"""What the gateway says of itself in an answer, and when: after the plugins, with the times that they read."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from sim.entity import Plugin
from tests.gateway import TIMEOUT_S, Base, gateway_to, live, served

OF_PROXIED = ("X-Kong-Upstream-Latency", "X-Kong-Proxy-Latency", "Via")
OF_OWN = ("X-Kong-Response-Latency", "Server")
LATENCIES = {
    "X-Kong-Upstream-Latency": "KONG_WAITING_TIME",
    "X-Kong-Proxy-Latency": "KONG_PROXY_LATENCY",
    "X-Kong-Response-Latency": "KONG_RESPONSE_LATENCY",
}


class Meddles(Base):
    """Looks in header_filter for what the gateway says of itself, replaces it, and removes what stood there before."""

    def access(self, kong, _conf):
        """Say it before, and answer in the service's place when told so."""
        kong.response.set_headers(dict.fromkeys((*OF_PROXIED, *OF_OWN, "X-Kong-Request-Id"), "early"))
        if kong.request.get_path() == "/own":
            kong.response.exit(200, "own", {"Server": "mine"})

    def header_filter(self, kong, _conf):
        """Look, remove, and say it anew."""
        seen = {name for name in (*OF_PROXIED, *OF_OWN) if kong.response.get_header(name) not in (None, "early")}
        for name in (*OF_PROXIED, *OF_OWN):
            kong.response.clear_header(name)
            kong.response.add_header(name, "late")
        kong.response.set_header("X-Seen", json.dumps(sorted(seen)))

    def log(self, kong, _conf):
        """Tell what the client was told."""
        kong.log.notice("told ", kong.response.get_header("Via"), " and ", kong.response.get_header("Server"))


@pytest.mark.parametrize(
    ("path", "names", "theirs", "in_log"),
    [("/", OF_PROXIED, [], "1.1 kong/3.9.1 and late"), ("/own", OF_OWN, ["Server"], "late and kong/3.9.1")],
)
def test_what_the_gateway_says_of_itself_is_written_after_the_plugins(tmp_path, path, names, theirs, in_log):
    """They do not see it in header_filter, and what they write or remove there of it has no effect."""
    with served(tmp_path, Meddles) as gateway:
        answer = gateway.request("GET", path)
        gateway.wait_logged(f"told {in_log}")

    assert json.loads(answer.headers["X-Seen"]) == theirs
    for name in names:
        assert "late" not in answer.headers.get_all(name)
        assert len(answer.headers.get_all(name)) == 1
    for name in {*OF_PROXIED, *OF_OWN}.difference(names):
        assert answer.headers.get_all(name) == ["late"]
    [request_id] = answer.headers.get_all("X-Kong-Request-Id")
    assert request_id != "early"


class Reads(Base):
    """Answers, raises or waits as the path says, and tells in header_filter what its context has."""

    async def access(self, kong, _conf):
        """Take a while."""
        await kong.ngx.sleep(0.005)
        if kong.request.get_path() == "/own":
            kong.response.exit(200, "own")
        if kong.request.get_path() == "/raise":
            raise ValueError("boom")

    def header_filter(self, kong, _conf):
        """Tell, and take a while."""
        kong.ngx.spend_cpu(0.005)
        kong.response.set_header("X-Times", json.dumps({name: kong.ngx.ctx.get(name) for name in LATENCIES.values()}))
        if (other := kong.request.get_query_arg("waited")) is not None:
            kong.ngx.ctx["KONG_WAITING_TIME"] = json.loads(other)


class Waits(Base):
    """Looks at the answer as a whole."""

    async def response(self, kong, _conf):
        """Take a while."""
        await kong.ngx.sleep(0.02)


def told_times(answer):
    """The latencies of an answer as the client was told them, and as a plugin has read them."""
    headers = {field: answer.headers.get(name) for name, field in LATENCIES.items()}
    read = json.loads(answer.headers["X-Times"])
    return {field: value and int(value) for field, value in headers.items()}, read


@pytest.mark.parametrize("path", ["/", "/own", "/raise"])
@pytest.mark.parametrize("classes", [(Reads,), (Reads, Waits)], ids=["passed on", "buffered"])
def test_latencies_in_the_answer_are_those_that_plugins_read(tmp_path, path, classes):
    """`KONG_WAITING_TIME` and `KONG_PROXY_LATENCY` of a proxied answer, `KONG_RESPONSE_LATENCY` of another."""  # R10
    with served(tmp_path, *classes) as gateway:
        for _ in range(5):
            told, read = told_times(gateway.request("GET", path))
            assert told == read
            assert [field for field, value in told.items() if value is None] == (
                ["KONG_RESPONSE_LATENCY"] if path == "/" else ["KONG_WAITING_TIME", "KONG_PROXY_LATENCY"]
            )


@pytest.mark.parametrize(("value", "told"), [("12345", "12345"), ("0.5", "0.5"), ("null", None), ("[1]", None)])
def test_latency_that_a_plugin_has_corrected_is_what_the_client_is_told(tmp_path, value, told):
    """It is the context's as the plugins have left it, where that is a number."""
    with served(tmp_path, Reads) as gateway:
        assert gateway.request("GET", f"/?waited={value}").headers["X-Kong-Upstream-Latency"] == told


@pytest.mark.parametrize("plugins", [(), ("reads",)], ids=["without plugins", "with a plugin"])
def test_time_until_the_service_answers_is_the_upstream_latency(tmp_path, plugins):
    """Also where the worker has had no turn of its event loop of its own in between."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        gateway = gateway_to(server.getsockname()[1], plugins=tuple(Plugin(name=name) for name in plugins))
        with live(tmp_path, gateway, {"reads": Reads}) as gateway, ThreadPoolExecutor(1) as client:
            answer = client.submit(gateway.request)
            upstream, _ = server.accept()
            upstream.recv(65536)
            upstream.settimeout(0.05)
            with pytest.raises(TimeoutError):
                upstream.recv(65536)
            upstream.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            told = answer.result(TIMEOUT_S)
            upstream.close()

    assert int(told.headers["X-Kong-Upstream-Latency"]) >= 49


@pytest.mark.parametrize("plugins", [(), ("reads",)], ids=["without plugins", "with a plugin"])
def test_answer_in_the_place_of_a_service_that_fails_has_the_latencies_of_a_proxied_one(tmp_path, plugins):
    """Kong had meant to proxy it (`KONG_PROXIED`), so it says how long that took; the `Server` is the gateway."""
    gateway = gateway_to(9, plugins=tuple(Plugin(name=name) for name in plugins), service={"host": "127.0.0.1"})
    with live(tmp_path, gateway, {"reads": Reads}) as gateway:
        answer = gateway.request()

    assert answer.status == 502
    assert (answer.headers["Via"], answer.headers["Server"]) == ("1.1 kong/3.9.1", "kong/3.9.1")
    assert {"X-Kong-Upstream-Latency", "X-Kong-Proxy-Latency"} <= set(answer.headers)
    assert "X-Kong-Response-Latency" not in answer.headers
    if plugins:
        assert [told == read for told, read in [told_times(answer)]] == [True]
