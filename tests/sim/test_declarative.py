import pytest

from sim.declarative import is_kong_yml, load, read_entities
from sim.document import Document, Override
from sim.errors import UserError

ENDPOINT = "http://127.0.0.1:4318/v1/traces"

NESTED = f"""\
_format_version: "3.0"
_transform: true
services:
  - name: orders
    url: http://127.0.0.1:9000/api
    tags: [team-a]
    routes:
      - name: all
        paths: [/]
        protocols: [http, https]
        plugins:
          - name: opentelemetry
            config:
              traces_endpoint: {ENDPOINT}
              queue: {{max_batch_size: 10}}
"""

FLAT = f"""\
_format_version: "3.0"
plugins:
  - name: opentelemetry
    route: {{name: all}}
    config: {{traces_endpoint: "{ENDPOINT}", queue: {{max_batch_size: 10}}}}
routes:
  - name: all
    service: orders
    paths: [/]
services:
  - name: orders
    url: http://127.0.0.1:9000/api
"""


@pytest.fixture
def entities(tmp_path):
    """Read a declarative file of the given text."""

    def read(text, **told):
        path = tmp_path / "kong.yml"
        path.write_text(text, encoding="utf-8")
        return read_entities(Document.read(str(path)), **told)

    return read


def test_nested_and_flat_files_say_the_same(entities):
    """Routes and plugins may stand in what they belong to, or refer to it by name."""
    assert entities(NESTED) == entities(FLAT)


def test_references_are_by_name_or_id(entities):
    """decK writes names, exports of a database write ids."""
    services = "services: [{name: orders, id: o-1, url: http://h.example}]\n"

    for reference in ("orders", "{name: orders}", "o-1", "{id: o-1}"):
        read = entities(f"{services}routes: [{{paths: [/], service: {reference}}}]\n")
        assert [route.service for route in read.routes] == ["orders"]


def test_what_has_no_name_gets_one(entities):
    """Names are optional in the format."""
    read = entities("services: [{host: a.example, routes: [{paths: [/]}]}, {host: b.example}]\n")

    assert [service.name for service in read.services] == ["service-1", "service-2"]
    assert [(route.name, route.service) for route in read.routes] == [("route-1", "service-1")]


def test_null_counts_as_left_out(entities):
    """Exports write every field, the unset ones as null."""
    read = entities(
        "services: [{name: a, host: a.example, path: ~, client_certificate: ~, tls_verify: ~}]\n"
        f"plugins: [{{name: opentelemetry, service: ~, config: {{traces_endpoint: '{ENDPOINT}', headers: ~}}}}]\n"
    )

    assert read.services[0].path is None
    assert read.plugins[0].config == {"traces_endpoint": ENDPOINT}
    assert read.warnings == ()


def test_a_disabled_plugin_is_absent(entities):
    """Whatever it is."""
    assert (
        entities("plugins: [{name: opentelemetry, enabled: false}, {name: key-auth, enabled: false}]\n").plugins == ()
    )


def test_what_works_beside_the_request_is_left_aside_with_a_warning(entities):
    """Each warning names file, line and field."""
    read = entities("consumers:\n  - username: me\nplugins:\n  - name: key-auth\ncertificates: []\n")

    assert [warning.split("/kong.yml:")[1] for warning in read.warnings] == [
        "1: consumers: consumers is not simulated: nobody is authenticated",
        "4: plugins[0].name: plugin key-auth is not simulated: requests pass as if it were absent",
    ]
    assert read.plugins == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "services:\n  - name: a\n    hots: b\n",
            "kong.yml:3: services[0].hots: unknown field; did you mean host?",
        ),
        ("services:\n  - name: a\n", "kong.yml:2: services[0].host: missing; add host"),
        ("service: []\n", "kong.yml:1: service: unknown field; did you mean services?"),
        ("services: {}\n", "kong.yml:1: services: expected a list, not an empty mapping; begin each with -"),
        ("services: [a]\n", "kong.yml:1: services[0]: expected a mapping of fields, not 'a'"),
        (
            "_format_version: 3.0\n",
            "kong.yml:1: _format_version: expected one of 1.1, 2.1, 3.0, not 3.0; put it in quotes",
        ),
        ("_format_version: '4.0'\n", "kong.yml:1: _format_version: expected one of 1.1, 2.1, 3.0, not '4.0'"),
        (
            "services:\n  - {name: a, url: 'https://a.example'}\n",
            "kong.yml:2: services[0].url: https is not built yet: upstreams are plain HTTP; leave it out",
        ),
        (
            "services:\n  - name: a\n    host: b.example\n    tls_verify: true\n",
            "kong.yml:4: services[0].tls_verify: tls_verify is not built yet: it needs TLS; leave it out",
        ),
        (
            "services:\n  - name: a\n    host: b.example\n    routes:\n      - paths: ['~/a$']\n",
            "kong.yml:5: services[0].routes[0].paths[0]: ~/a$ is not built yet: paths are prefixes; begin it with /",
        ),
        (
            "services:\n  - name: a\n    host: b.example\n    routes:\n      - headers: {x: [y]}\n",
            "kong.yml:5: services[0].routes[0].headers: headers is not built yet: it matches on headers; leave it out",
        ),
        (
            "upstreams:\n  - name: a\n",
            "kong.yml:1: upstreams: upstreams is not built yet: it balances load over targets; leave it out",
        ),
        (
            "routes:\n  - paths: [/]\n",
            "kong.yml:2: routes[0]: a route without service is not built yet: each route leads to a service; add it",
        ),
        (
            "services: [{name: orders, host: a.example}]\nroutes:\n  - paths: [/]\n    service: order\n",
            "kong.yml:4: routes[0].service: there is no service 'order'; did you mean orders?",
        ),
        (
            "services:\n  - {name: a, host: a.example}\n  - {name: a, host: a.example}\n",
            "kong.yml:3: services[1].name: a second service named 'a'; give it another name",
        ),
        (
            "plugins:\n  - name: opentelemtry\n",
            "kong.yml:2: plugins[0].name: there is no plugin 'opentelemtry'; did you mean opentelemetry?",
        ),
        (
            "plugins:\n  - name: opentelemetry\n",
            "kong.yml:2: plugins[0].config.traces_endpoint: missing; add traces_endpoint: http://127.0.0.1:4318/v1/traces",
        ),
        (
            "plugins:\n  - name: opentelemetry\n    config:\n      queue:\n        max_batch_size: 0\n",
            "kong.yml:5: plugins[0].config.queue.max_batch_size: must be at least 1, not 0",
        ),
        (
            "plugins:\n  - name: opentelemetry\n    consumer: me\n",
            "kong.yml:3: plugins[0].consumer: consumer is not built yet: it is for one consumer; leave it out",
        ),
        (
            "plugins:" + 2 * f"\n  - {{name: opentelemetry, config: {{traces_endpoint: '{ENDPOINT}'}}}}",
            "kong.yml:3: plugins[1]: a second opentelemetry for the same requests; keep one of them",
        ),
    ],
)
def test_a_mistake_is_named_with_line_field_and_cure(entities, text, message):
    """What is wrong, where, and what to do about it."""
    with pytest.raises(UserError) as caught:
        entities(text)
    assert str(caught.value).endswith(f"/{message}")


def test_with_a_collector_provided_an_exporter_need_not_say_where_to(entities):
    """A scenario's opentelemetry plugin exports to the built-in collector."""
    assert entities("plugins: [{name: opentelemetry}]\n", provided={"collector"}).plugins[0].lacks_endpoint


def test_with_upstreams_provided_a_single_word_names_one_of_them(entities):
    """Names with a dot, localhost and addresses are looked up as ever."""
    told = {"provided": {"collector", "default"}}

    for host in ("default", "localhost", "orders.internal", "127.0.0.1"):
        assert entities(f"services: [{{name: a, host: {host}}}]\n", **told).services[0].host == host
    with pytest.raises(UserError, match=r"services\[0\]\.url: there is no upstream defualt; did you mean default\?"):
        entities("services: [{name: a, url: 'http://defualt'}]\n", **told)


def test_a_gateway_of_its_own_is_told_the_rest(tmp_path):
    """Settings come from the command line; the collector's URL fills the gaps."""
    path = tmp_path / "kong.yml"
    path.write_text("_format_version: '3.0'\nplugins: [{name: opentelemetry}]\n", encoding="utf-8")

    gateway = load(
        str(path),
        [
            Override(("workers",), 3, "--workers"),
            Override(("listen",), "127.0.0.1:0", "--listen"),
            Override(("tracing", "instrumentations"), ["all"], "--tracing-instrumentations"),
            Override(("collector",), ENDPOINT, "--collector"),
        ],
    )

    assert (gateway.workers, gateway.listen, gateway.profile) == (3, ("127.0.0.1:0",), "kong")
    assert (gateway.tracing.instrumentations, gateway.tracing.sampling_rate) == (("all",), 0.01)
    assert gateway.plugins[0].config == {"traces_endpoint": ENDPOINT}


def test_a_wrong_setting_names_the_option(tmp_path):
    """No file and no line is to blame."""
    path = tmp_path / "kong.yml"
    path.write_text("_format_version: '3.0'\n", encoding="utf-8")

    with pytest.raises(UserError, match=r"^--workers: workers: expected auto or a whole number"):
        load(str(path), [Override(("workers",), 0, "--workers")])


def test_a_kong_yml_is_known_by_its_format_version(tmp_path):
    """A scenario has none."""
    kong_yml, scenario = tmp_path / "kong.yml", tmp_path / "scenario.yaml"
    kong_yml.write_text("_format_version: '3.0'\n", encoding="utf-8")
    scenario.write_text("name: a\n", encoding="utf-8")

    assert is_kong_yml(Document.read(str(kong_yml)))
    assert not is_kong_yml(Document.read(str(scenario)))
