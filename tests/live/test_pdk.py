"""What an author finds who knows Kong's PDK in Lua: errors that name the caller, tables, and what is not simulated."""

import asyncio
import json
from inspect import getsourcelines
from operator import attrgetter

from kongtrace import ApiError
from sim.plugin_error import described
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
        line = gateway.wait_logged('; write ["told"], client: ')
        assert "AttributeError: 'dict' object has no attribute 'told'" in line


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


# The serialized log.


class Serializes(Base):
    """Sets values of the serialized log, and logs it."""

    PRIORITY = 10

    def access(self, kong, conf):
        """Set them, and answer when told so."""
        for key, value, *mode in conf["values"]:
            kong.log.set_serialize_value(key, value, *({"mode": word} for word in mode))
        if kong.request.get_path() == "/own":
            kong.response.exit(201, "own")

    def log(self, kong, _conf):
        """Log it."""
        entry = kong.log.serialize()
        assert entry.response.status == kong.response.get_status()
        if entry.route is not None:
            kong.log.serialize().route.protocols.clear()
            assert kong.router.get_route().protocols
        kong.log.notice("entry ", json.dumps(entry))


def serialized(directory, path="/", values=(), headers=None, **options):
    """What the serialized log of a request says."""
    configs = {"serializes": {"values": list(values)}}
    with served(directory, Serializes, configs=configs.items(), **options) as gateway:
        gateway.request("POST", path, b"body", headers or {})
        line = gateway.wait_logged("entry {")
    return json.JSONDecoder().raw_decode(line[line.index("entry ") + 6 :])[0]


def test_serialized_log_is_what_kongs_logging_plugins_write(tmp_path):
    """Request, answer, times, tries, route and service; what would be a password is left out."""
    entry = serialized(tmp_path, "/a?b=1", headers={"Authorization": "Basic abc", "X-Mine": "1"})

    assert list(entry) == [
        *("request", "upstream_uri", "upstream_status", "response", "latencies", "tries", "route", "service"),
        *("client_ip", "started_at", "source", "workspace", "workspace_name"),
    ]
    request, response = entry["request"], entry["response"]
    assert (request["method"], request["uri"], request["querystring"]) == ("POST", "/a?b=1", {"b": "1"})
    assert request["url"].startswith("http://127.0.0.1:")
    assert request["url"].endswith("/a?b=1")
    assert (request["headers"]["authorization"], request["headers"]["x-mine"]) == ("REDACTED", "1")
    assert request["size"] > len("POST /a?b=1 HTTP/1.1\r\n\r\nbody")
    assert (response["status"], response["headers"]["via"]) == (200, "1.1 kong/3.9.1")
    assert response["size"] > int(response["headers"]["content-length"])
    assert entry["latencies"].keys() == {"request", "kong", "proxy", "receive"}
    assert entry["latencies"]["proxy"] == int(response["headers"]["x-kong-upstream-latency"])
    assert entry["latencies"]["kong"] == int(response["headers"]["x-kong-proxy-latency"])
    assert entry["latencies"]["request"] >= entry["latencies"]["kong"]
    assert [sorted(attempt) for attempt in entry["tries"]] == [
        ["balancer_latency", "balancer_latency_ns", "balancer_start", "balancer_start_ns", "ip", "port"]
    ]
    assert (entry["upstream_uri"], entry["upstream_status"], entry["source"]) == ("/a?b=1", "200", "upstream")
    assert (entry["route"]["name"], entry["service"]["id"]) == ("all", entry["route"]["service"]["id"])
    tried = entry["tries"][0]
    chosen_ms = (tried["balancer_start_ns"] + tried["balancer_latency_ns"]) // 10**6
    assert entry["started_at"] == chosen_ms - entry["latencies"]["kong"]
    assert (entry["client_ip"], entry["workspace_name"]) == ("127.0.0.1", "default")


def test_serialized_log_of_an_answer_of_the_gateways_own_has_no_tries(tmp_path):
    """Nor a service that was waited for."""
    entry = serialized(tmp_path, "/own")

    assert (entry["tries"], entry["upstream_status"], entry["source"]) == ([], "", "kong")
    assert (entry["latencies"]["proxy"], entry["latencies"]["receive"], entry["response"]["status"]) == (-1, 0, 201)


def test_serialized_log_tells_of_each_try(tmp_path):
    """What came of it, and the statuses of all."""
    options = {"hosts": {}, "service": {"host": "127.0.0.1", "port": 9, "retries": 1}}
    entry = serialized(tmp_path, **options)

    assert [(attempt["state"], attempt["code"]) for attempt in entry["tries"]] == [("failed", 502)] * 2
    assert (entry["upstream_status"], entry["response"]["status"], entry["source"]) == ("502, 502", 502, "kong")


def test_values_of_the_serialized_log_may_be_set_added_replaced_and_removed(tmp_path):
    """Within tables too; those that lead to it are made, but to replace nothing."""
    entry = serialized(
        tmp_path,
        values=[
            ("a.b.c", 1),
            ("a.b.d", [1, {"e": None}]),
            ("a.b.c", 2, "add"),
            ("a.b.f", 3, "add"),
            ("a.b.g", 4, "replace"),
            ("g.h", 5, "replace"),
            ("request.method", "PUT", "replace"),
            ("response", None),
            ("response.status", 200),
            ("service", None),
        ],
    )

    assert entry["a"] == {"b": {"c": 1, "d": [1, {"e": None}], "f": 3}}
    assert entry["request"]["method"] == "PUT"
    assert entry["response"] == {"status": 200}
    assert {"g", "service"}.isdisjoint(entry)


class Spoils(Base):
    """Sets what cannot be set."""

    def log(self, kong, _conf):
        """Tell what is said of each."""
        inner: list = []
        inner.append(inner)
        for key, value, options in (
            (1, 1, None),
            ("a", 1, {"mode": "put"}),
            ("a", kong, None),
            ("a", inner, None),
            ("client_ip.x", 1, None),
        ):
            try:
                kong.log.set_serialize_value(key, value, options)
                kong.log.serialize()
            except ApiError as error:
                kong.log.err(error)
            kong.ngx.ctx["serialize_values"] = []


def test_value_that_cannot_be_serialized_is_refused_in_kongs_words(tmp_path):
    """By the call, or where it is serialized."""
    with served(tmp_path, Spoils) as gateway:
        gateway.request()
        gateway.wait_requests(1)
        log = gateway.log.read_text()

    for message, times in {
        "key must be a string": 1,
        "mode must be 'set', 'add' or 'replace'": 1,
        "value must be nil, a number, string, boolean or a non-self-referencial table": 2,
        "The key 'client_ip.x' could not be used as a serialize value. Subkey 'client_ip' is not a table. It's 127": 1,
    }.items():
        assert log.count(message) == times


# What there is, and what there is not.


class Knows(Base):
    """Reads what the gateway says of itself."""

    def access(self, kong, _conf):
        """Tell the client."""
        configuration = kong.configuration
        assert configuration.log_level == configuration["log_level"] == configuration.get("log_level")
        try:
            configuration.log_level = "debug"
        except ApiError as error:
            refused = str(error)
        assert kong.ngx.null is None
        assert kong.ngx.time() == int(kong.ngx.now())
        settings = [configuration.tracing_sampling_rate, configuration.log_level, configuration.pg_host]
        kong.response.exit(200, {"version": [kong.version, kong.version_num], "settings": settings, "refused": refused})


def test_plugin_knows_version_and_configuration(tmp_path):
    """By Kong's names; a setting that is not there is None, and none can be written."""
    with served(tmp_path, Knows, log_level="info") as gateway:
        said = json.loads(gateway.request().content)

    assert said == {
        "version": ["3.9.1", 30901],
        "settings": [1.0, "info", None],
        "refused": "cannot write to configuration",
    }


class Seeks(Base):
    """Asks for what is not there."""

    def access(self, kong, _conf):
        """Tell what is said of each."""
        told = []
        paths = "cache client.authenticate ngx.var db.consumers timer.named_at requst log.warning"
        for path in paths.split():
            try:
                attrgetter(path)(kong)
            except AttributeError as error:
                told.append(described(error))
        assert not hasattr(kong, "vault")
        kong.response.exit(200, told)


def test_whoever_asks_for_what_is_not_simulated_is_told_what_takes_its_place(tmp_path):
    """And where the others stand; a misspelt name is guessed."""
    page = '(docs/plugins.md, "Not simulated")'
    with served(tmp_path, Seeks) as gateway:
        told = json.loads(gateway.request().content)

    assert told == [
        f"AttributeError: {what}"
        for what in (
            f"kong.cache is not simulated: self, which is the worker's, holds what is looked up {page}",
            f"kong.client.authenticate is not simulated: there are no consumers: nobody is authenticated {page}",
            f"kong.ngx.var is not simulated: kong.request, kong.client and kong.service.request {page}",
            f"kong.db.consumers is not simulated: kong.db.query; there are no entities in it {page}",
            f"kong.timer.named_at is not simulated: kong.timer.at and every: timers have no names {page}",
            "kong has no requst: did you mean request?",
            "kong.log has no warning: did you mean warn?",
        )
    ]
