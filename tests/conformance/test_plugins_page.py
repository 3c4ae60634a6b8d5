"""`docs/plugins.md`: its tables say what the code says, and each of its samples is a plugin that does what it says."""

import ast
import inspect
import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from kongtrace import PHASES, ApiError, Execution
from sim import ngx, pdk
from sim import plugin as plugins
from sim.absence import ABSENT
from sim.config import Gateway
from sim.entity import Plugin, Route, Service
from sim.pdk import configuration, log, node, queue, request, response, router, serializer, service
from sim.pdk.part import phases_of
from sim.plugins import BUNDLED
from sim.timers import Timers
from tests.gateway import attributes, echo, gateway_to, live, recording_collector

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"

PARTS = {
    "kong.request": request.ClientRequest,
    "kong.response": response.Response,
    "kong.service": service.Service,
    "kong.service.request": service.ServiceRequest,
    "kong.service.response": service.ServiceResponse,
    "kong.client": pdk.Client,
    "kong.router": router.Router,
    "kong.plugin": pdk.Plugin,
    "kong.log": serializer.Serializer,
    "kong.node": node.Node,
    "kong.telemetry": log.Telemetry,
    "kong.timer": Timers,
    "kong.queue": queue.Queue,
    "kong.db": ngx.Database,
    "kong.ngx": ngx.Ngx,
    "kong.ngx.worker": ngx.Worker,
    "kong.ngx.socket": ngx.Sockets,
    "kong.ngx.http": ngx.Http,
}
"""The parts of the PDK whose functions the page lists."""

KONG_PHASES = ("init_worker", "rewrite", "access", "response", "header_filter", "body_filter", "log")
UNSEEN = {"certificate", "balancer", "preread", "error", "admin_api"}
"""Phases in Kong's messages in which no plugin runs here."""

NGINX_PHASE = {"response": "access"}


def phase_table():
    """The rows of the table of phases."""
    for name in (*KONG_PHASES, "timer", "balancer", "exit_worker"):
        phase = PHASES[NGINX_PHASE.get(name, name)]
        permits = (phase.yields, phase.timers, phase.spans)
        yield f"| `{name}` | `{phase.name}` | {' | '.join('yes' if permitted else 'no' for permitted in permits)} |"


def pdk_table():
    """The rows of the table of the PDK's functions."""
    for path, part in PARTS.items():
        for name, function in vars(part).items():
            if name.startswith("_") or isinstance(function, property) or not callable(function):
                continue
            if part is Timers and name == "exit":
                continue
            source = inspect.unwrap(function)
            where = _where(function)
            parameters = [_parameter(p) for p in list(inspect.signature(source).parameters.values())[1:]]
            awaited = (
                "await "
                if inspect.iscoroutinefunction(source)
                or "Awaitable" in str(inspect.signature(source).return_annotation)
                else ""
            )
            sentence = inspect.getdoc(source).partition("\n\n")[0].replace("\n", " ")
            yield f"| `{awaited}{path}.{name}({', '.join(parameters)})` | {sentence} | {where} |"


def _where(function):
    """The phases of a function in words."""
    phases = phases_of(function)
    if phases is None:
        return "that may wait" if "the phase must not wait" in inspect.getdoc(function) else "all"
    seen = [phase for phase in phases if phase not in UNSEEN]
    return "of a request" if tuple(seen) == KONG_PHASES[1:] else ", ".join(seen)


def _parameter(parameter):
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    has_default = parameter.default is not parameter.empty and type(parameter.default) is not object
    return f"{parameter.name}={parameter.default!r}" if has_default else parameter.name


def absent_table():
    """The rows of the table of what is not simulated."""
    for absent in ABSENT:
        names = ", ".join(f"`{absent.path}.{name}`" for name in absent.names or ("<entity>",))
        yield f"| {names} | {absent.instead} |"


@pytest.mark.parametrize("table", [phase_table, pdk_table, absent_table])
def test_tables_say_what_the_code_says(table):
    """Each phase with what it permits, each function of the PDK with its phases, and what is not simulated."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    missing = [row for row in table() if row not in page]

    assert "\n".join(missing) == ""


def test_the_message_of_a_forbidden_call_is_quoted_as_the_program_says_it():
    """The page names the phases that are in it and not in the table."""
    execution = Execution()
    execution.enter(PHASES["log"], {"KONG_PHASE": "log"})
    page = PAGE.read_text(encoding="utf-8")
    with pytest.raises(ApiError) as raised:
        service.Service(execution, frozenset()).request.set_header("X-A", "1")
    assert f"`kong.service.request.set_header` in `log`:\n`{raised.value}`" in page
    (unseen,) = re.findall(r"so neither ([^.]*)\.", page)
    assert set(re.findall(r"`(\w+)`", unseen)) == UNSEEN


def test_every_field_of_a_bundled_plugin_is_on_the_page():
    """Names of fields, one by one, below the plugin's heading."""
    sections = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, plugin in BUNDLED.items():
        (section,) = [text for text in sections if text.startswith(f"`{name}`")]
        assert set(plugin.Config.model_fields) <= set(re.findall(r"\w+", section)), name


def test_every_setting_is_on_the_page():
    """Where it says what `kong.configuration` has."""
    page = PAGE.read_text(encoding="utf-8")
    (said,) = re.findall(r"^- `kong\.configuration` has.*?(?=^- )", page, re.MULTILINE | re.DOTALL)

    assert set(configuration.Configuration(Gateway())) <= set(re.findall(r"\w+", said))


def test_every_field_of_a_route_and_a_service_is_on_the_page():
    """Where it says what `kong.router` gives."""
    page = PAGE.read_text(encoding="utf-8")
    (said,) = re.findall(r"^- What `kong\.router` gives .*?(?=^- )", page, re.MULTILINE | re.DOTALL)

    assert {*Route.model_fields, *Service.model_fields} <= set(re.findall(r"\w+", said))


SAMPLES = {
    re.match(r"# (\w+)\.py", source)[1]: source
    for page in (PAGE, PAGE.with_name("propagation.md"))
    for source in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
}
"""The samples by name, of this page and of the one on propagation; each begins with the name of its file."""


@contextmanager
def sampled(directory, name, config=None, *, exported=True, **options):
    """Run a gateway to an echo with a sample; its traces are exported, unless that is not wanted."""
    path = directory / f"{name}.py"
    path.write_text(SAMPLES[name], encoding="utf-8")
    classes = plugins.load([str(path)], {})
    (plugin,) = classes
    with echo() as upstream, recording_collector() as collector:
        entity = Plugin(name=plugin, config=config or {})
        gateway = gateway_to(upstream, plugins=(entity,), collector=collector.port if exported else None, **options)
        with live(directory, gateway, classes) as running:
            yield running, collector
            running.stop()
            assert "[error]" not in running.log.read_text().replace("[error] 0", "")


def test_greeter(tmp_path):
    """The first sample greets everybody by the configured word, and knows who asked before."""
    with sampled(tmp_path, "greeter", {"greeting": "howdy"}) as (gateway, _collector):
        answer = gateway.request("GET", "/?name=Ann")
        assert answer.headers["X-Greeting"] == "howdy, Ann"
        assert json.loads(answer.content)["path"] == "/?name=Ann"
        assert gateway.request("GET", "/").status == 400


def test_price(tmp_path):
    """The sample of own spans: one span below the plugin's, with an attribute, and an error in it."""
    with sampled(tmp_path, "price") as (gateway, collector):
        gateway.request("GET", "/?net=100")
        gateway.request("GET", "/?net=free")
        reading = gateway.wait_requests(2)
        spans = collector.wait_spans(reading.ledger.acknowledged)
    priced, failed = sorted((span for span in spans if span.name == "price"), key=lambda span: span.status.code)
    assert attributes(priced) == {"price.net": 100.0, "price.gross": 119.0}
    assert [event.name for event in failed.events] == ["exception"]
    parents = {span.span_id: span.name for span in spans}
    assert parents[priced.parent_span_id] == "kong.access.plugin.price"


def test_quota(tmp_path):
    """The sample that waits asks another service, and answers itself when that says no."""
    with (
        echo() as other,
        sampled(tmp_path, "quota", {"url": f"http://127.0.0.1:{other}/quota"}) as (gateway, _collector),
    ):
        assert int(gateway.request().headers["X-Quota"]) > 10
    with sampled(tmp_path, "quota", {"url": "http://127.0.0.1:9/quota"}) as (gateway, _collector):
        assert json.loads(gateway.request().content)["message"] == "no quota: connection refused"


def test_offers(tmp_path):
    """The sample of tasks asks all services at once, and says of each span whose child it is."""
    with echo() as other:
        urls = [f"http://127.0.0.1:{other}/one", "http://127.0.0.1:9/none", f"http://127.0.0.1:{other}/two"]
        with sampled(tmp_path, "offers", {"urls": urls}) as (gateway, collector):
            told = dict(json.loads(gateway.request().content)["headers"])
            spans = collector.wait_spans(gateway.wait_requests(1).ledger.acknowledged)
    assert told["x-offers"] == f"200 of {urls[0]}, none, 200 of {urls[2]}"
    parents = {span.span_id: span.name for span in spans}
    offers = [span for span in spans if span.name == "offer"]
    assert [parents[span.parent_span_id] for span in offers] == ["offers"] * 3
    assert [event.name for span in offers for event in span.events] == ["exception"]


def test_join(tmp_path):
    """The sample of propagation goes on in the client's trace, with a span of its own, or begins one."""
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with sampled(tmp_path, "join", exported=False) as (gateway, _collector):
        sent = {"traceparent": f"00-{trace_id}-{span_id}-01"}
        joined, begun = (
            dict(json.loads(gateway.request(headers=headers).content)["headers"]) for headers in (sent, {})
        )
    version, trace, span, flags = joined["traceparent"].split("-")
    assert (version, trace, flags) == ("00", trace_id, "01")
    assert span != span_id
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01", begun["traceparent"])
    assert begun["traceparent"].split("-")[1] != trace_id


def test_journal(tmp_path):
    """The sample of a timer writes what the log phase has noted, once the request is over."""
    with sampled(tmp_path, "journal") as (gateway, _collector):
        gateway.request("GET", "/a")
        gateway.wait_until(lambda _: "journal: GET /a 200" in gateway.log.read_text())


def test_shipper(tmp_path):
    """The sample of an exporter posts its copies as JSON, and the ledger has them."""
    with (
        recording_collector() as receiver,
        sampled(tmp_path, "shipper", {"url": f"http://127.0.0.1:{receiver.port}/"}, exported=False) as (
            gateway,
            _collector,
        ),
    ):
        gateway.request("GET", "/a")
        ledger = gateway.wait_requests(1).ledger
        spans = [span for body in receiver.bodies() for span in json.loads(body)]
    assert ledger.created == ledger.acknowledged == len(spans)
    (root,) = (span for span in spans if span["name"] == "kong")
    assert root["attributes"]["http.method"] == "GET"
    assert {span["parent_id"] for span in spans} == {None, root["span_id"]}


def test_audit(tmp_path):
    """The sample of a log writes what Kong's logging plugins do, the client's trace id included, and its own field."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with sampled(tmp_path, "audit") as (gateway, _collector):
        gateway.request(headers={"X-Tenant": "7", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
        line = gateway.wait_logged("audit: {")
    entry = json.JSONDecoder().raw_decode(line[line.index("{") :])[0]
    assert (entry["tenant"], entry["trace_id"], entry["response"]["status"]) == ({"id": "7"}, {"w3c": trace_id}, 200)


def test_redact(tmp_path):
    """The sample of a filter replaces the body whole, and its length."""
    with sampled(tmp_path, "redact", {"word": "secret"}) as (gateway, _collector):
        answer = gateway.request("GET", "/secret")
        assert json.loads(answer.content)["path"] == "/******"


def test_envelope(tmp_path):
    """The sample of the response phase looks at the whole answer and sends another."""
    with sampled(tmp_path, "envelope") as (gateway, _collector):
        answer = gateway.request("GET", "/a")
        said = json.loads(answer.content)
        assert (said["status"], said["data"]["path"]) == (200, "/a")


def test_every_sample_is_tested():
    """There is a test of the name of each sample."""
    tests = {
        node.name
        for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert {f"test_{name}" for name in SAMPLES} <= tests
