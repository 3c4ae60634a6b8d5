"""What an author finds who knows Kong's PDK in Lua: errors that name the caller, tables, and what is not simulated."""

import asyncio
import json
from inspect import getsourcelines

from tests.gateway import Base, echo, served


def line_of(function, text):
    """The line of a file in which a function has a text."""
    lines, first = getsourcelines(function)
    return next(number for number, line in enumerate(lines, first) if text in line)


# Errors.


class Mistaken(Base):
    """Calls the PDK wrongly, in the way that the path names."""

    def init_worker(self, kong):
        """Call it, and once again later."""
        kong.timer.at(0, self.tick, kong)
        kong.service.request.set_header("x", None)  # at start

    async def access(self, kong, _conf):
        """Call it directly, or in a task of which nobody asks how it ends."""
        if kong.request.get_path() == "/task":
            asyncio.create_task(self.work(kong))  # noqa: RUF006 - that is the case
        elif kong.request.get_path() == "/access":
            kong.service.request.set_header("x", None)  # in access

    def header_filter(self, kong, _conf):
        """Call it where it is not permitted."""
        if kong.request.get_path() == "/header_filter":
            kong.service.request.set_header("x", "1")  # in header_filter

    def body_filter(self, kong, _conf):
        """Call it where it is not permitted."""
        if kong.request.get_path() == "/body_filter":
            kong.service.request.set_header("x", "1")  # in body_filter

    def log(self, kong, _conf):
        """Give a function to the tracer that has no such argument, and read what is no JSON."""
        if kong.request.get_path() == "/log":
            kong.tracing.process_span(lambda _span: json.loads("{"))  # in log

    async def tick(self, _premature, kong):
        """Call it without a request."""
        await kong.ngx.sleep(0)
        kong.service.request.set_header("x", "1")  # in a timer

    async def work(self, kong):
        """Wait, and call it."""
        await kong.ngx.sleep(0)
        kong.service.request.set_header("x", None)  # in a task


def test_error_names_the_line_and_the_plugin_that_it_comes_from(tmp_path):
    """Not a line of what the plugin has called, of the gateway's or of Python's own, in every phase, timer and task."""

    def place(text):
        return f"{__file__}:{line_of(Mistaken, '# ' + text)}"

    aborted = "lua entry thread aborted: runtime error: "
    with served(tmp_path, Mistaken) as gateway:
        for path, line in {
            "/access": f"{aborted}access_by_lua({place('in access')}): [mistaken] ApiError: invalid header",
            "/header_filter": f"header_filter_by_lua({place('in header_filter')}): [mistaken] ApiError: function",
            "/body_filter": f"body_filter_by_lua({place('in body_filter')}): [mistaken] ApiError: function",
            "/log": f"log_by_lua({place('in log')}): [mistaken] JSONDecodeError: Expecting property name",
            "/task": f"lua user thread aborted: runtime error: {place('in a task')}: ApiError: invalid header value",
        }.items():
            gateway.exchange(f"GET {path} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n".encode())
            gateway.wait_logged(line)
        gateway.wait_logged(f"init_worker of plugin mistaken failed: {place('at start')}: ApiError: ")
        gateway.wait_logged(f"{aborted}{place('in a timer')}: ApiError: no phase in ngx.ctx.KONG_PHASE")


# Headers.


class Looks(Base):
    """Looks headers up as somebody does who knows that their case does not matter."""

    async def access(self, kong, conf):
        """Of the request, and of another server's answer."""
        headers = kong.request.get_headers()
        assert headers["User-Agent"] == headers.get("user_agent") == kong.request.get_headers(5)["USER-AGENT"] == "me"
        assert headers.pop("Authorization") == "secret"
        assert "X-Nothing" not in headers
        answer, _error = await kong.ngx.http.new().request_uri(conf["uri"], {"headers": headers})
        assert answer.headers["Content-Length"] == answer.headers["content_length"]
        kong.service.request.set_header("X-Relayed", json.dumps(json.loads(answer.body)["headers"]))

    def header_filter(self, kong, _conf):
        """Of the answer, and of the service's."""
        assert kong.response.get_headers()["DATE"] == kong.service.response.get_headers()["Date"]


def test_headers_are_found_in_any_case_and_with_an_underscore_for_a_dash(tmp_path):
    """As in Kong's tables; one that is taken out is not handed on."""
    with (
        echo() as other,
        served(tmp_path, Looks, configs={"looks": {"uri": f"http://127.0.0.1:{other}/"}}.items()) as gateway,
    ):
        answer = gateway.request(headers={"User-Agent": "me", "Authorization": "secret"})
        log = gateway.log.read_text()

    assert "[error]" not in log
    relayed = dict(json.loads(dict(json.loads(answer.content)["headers"])["x-relayed"]))
    assert relayed["user-agent"] == "me"
    assert "authorization" not in relayed


# Tables.


class Remembers(Base):
    """Keeps fields in the tables of a request, and tells what it finds there and in its configuration."""

    def access(self, kong, conf):
        """Keep them."""
        assert kong.ctx.shared.asked is None
        kong.ctx.shared.asked = kong.request.get_path()
        kong.ctx.plugin.limits = conf.limits
        kong.ctx.plugin["number"] = conf["limits"].per[0].second

    def header_filter(self, kong, conf):
        """Tell them."""
        table = kong.ctx.plugin
        kong.response.set_header("X-Told", f"{kong.ctx.shared['asked']} {table.number} {table.other} {conf.other}")

    def log(self, kong, _conf):
        """Take `ngx.ctx`, which is a mapping, for such a table."""
        kong.ngx.ctx.told = 1


def test_fields_of_a_requests_tables_and_of_a_configuration_are_its_keys(tmp_path):
    """One that is not there is None; of `kong.ngx.ctx`, which has keys alone, the log says so."""
    config = {"limits": {"per": [{"second": 5}]}}
    with served(tmp_path, Remembers, configs={"remembers": config}.items()) as gateway:
        assert gateway.request("GET", "/a").headers["X-Told"] == "/a 5 None None"
        gateway.wait_logged("AttributeError: 'dict' object has no attribute 'told'; write [\"told\"]")


# Route and service.


class Asks(Base):
    """Asks where the request goes, after having sent it elsewhere."""

    def access(self, kong, _conf):
        """Tell the client."""
        kong.service.set_retries(1)
        route, service = kong.router.get_route(), kong.router.get_service()
        assert route["service"]["id"] == route.service.id == service.id == service["id"]
        kong.response.exit(200, {"route": route, "service": service, "unset": [route.hosts, service.path]})


def test_route_and_service_are_tables_with_kongs_fields(tmp_path):
    """By key or as fields; what is not set is not there; the service is the configured one."""
    with served(tmp_path, Asks, route={"paths": ("/a", "/b")}) as gateway:
        said = json.loads(gateway.request("GET", "/a").content)

    assert said["unset"] == [None, None]
    assert said["route"]["paths"] == ["/a", "/b"]
    assert (said["route"]["name"], said["service"]["name"], said["service"]["retries"]) == ("all", "orders", 2)
    assert {"hosts", "methods", "headers", "created_at"}.isdisjoint(said["route"])


class Nowhere(Base):
    """Asks for the service of a route without one."""

    def access(self, kong, _conf):
        """Tell the client."""
        kong.response.exit(200, {"service": kong.router.get_service(), "of_route": kong.router.get_route().service})


def test_route_without_a_service_has_none(tmp_path):
    """Neither as a field nor to be asked for."""
    with served(tmp_path, Nowhere, route={"service": None}) as gateway:
        assert json.loads(gateway.request().content) == {"service": None, "of_route": None}
