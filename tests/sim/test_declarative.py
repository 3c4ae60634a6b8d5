import pytest

from sim.declarative import is_kong_yml, load, read_entities
from sim.document import Document, Override
from sim.errors import UserError
from sim.plugin import configuration

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
        "1: consumers: not simulated: nobody is authenticated",
        (
            "4: plugins[0].name: plugin key-auth is not simulated: requests pass as if it were absent;"
            " a stand-in can give it a cost"
        ),
    ]
    assert read.plugins == ()


@pytest.mark.parametrize(
    ("version", "written", "read", "warned"),
    [
        ("3.0", "~/a/(\\d+)$", "~/a/(\\d+)$", False),
        ("3.0", "/a.b~c", "/a.b~c", False),
        ("3.0", "/a/(\\d+)$", "/a/(\\d+)$", True),
        ("2.1", "/a.b~c%20", "/a.b~c%20", False),
        ("2.1", "/a/(\\d+)$", "~/a/(\\d+)$", False),
        ("1.1", "/a/%2e%7E%2F+", "~/a/\\.~%2F+", False),
        ("1.1", "/a/(?<x>.*)", "~/a/(?<x>.*)", False),
    ],
)
def test_a_regular_expression_is_told_by_a_tilde_since_format_3(entities, version, written, read, warned):
    """Before, any path with a character that paths rarely have was one; since then such a path gets a warning."""
    found = entities(f"_format_version: '{version}'\nroutes: [{{paths: ['{written}']}}]\n")

    assert [route.paths for route in found.routes] == [(read,)]
    assert [" a regular expression begins with ~/ since format 3.0" in warning for warning in found.warnings] == (
        [True] if warned else []
    )


def test_what_cannot_be_simulated_is_left_out_with_a_warning(entities):
    """The entity, with what belongs to it, and one line that says why."""
    read = entities(
        "services:\n"
        "  - name: mail\n"
        "    protocol: tcp\n"
        "    host: mail.example\n"
        "    routes: [{name: smtp, protocols: [tcp], destinations: [{port: 25}]}]\n"
        "  - {name: old, host: old.example, enabled: false, routes: [{paths: [/old]}]}\n"
        "routes:\n"
        "  - {name: by-expression, expression: http.path == '/'}\n"
        "  - {name: rpc, protocols: [grpc, grpcs], paths: [/rpc]}\n"
        "  - {name: kept, paths: [/]}\n"
        "  - {name: to-mail, service: mail, paths: [/mail]}\n"
        "plugins:\n"
        "  - {name: opentelemetry, route: rpc}\n"
        "  - {name: correlation-id, consumer: me}\n"
    )

    assert [route.name for route in read.routes] == ["kept"]
    assert read.plugins == ()
    assert [warning.split("/kong.yml:")[1] for warning in read.warnings] == [
        "3: services[0].protocol: this service is left out: it is for tcp, and connections are plain HTTP",
        "8: routes[0].expression: this route is left out: it matches by an expression",
        "9: routes[1].protocols: this route is left out: it is for grpc, grpcs, and connections are plain HTTP",
        "14: plugins[1].consumer: this plugin is left out: it is for one consumer, and nobody is authenticated",
    ]


def test_defaults_that_deck_fills_in_get_a_warning(entities):
    """They would change what every entity does; what else decK notes changes nothing."""
    info = "_info:\n  select_tags: [team]\n  defaults: {route: {strip_path: false}}\n"
    (warning,) = entities(f"{info}services: [{{name: orders, host: a.example}}]\n").warnings
    assert warning.endswith("3: _info.defaults: not simulated: what is left out has Kong's defaults")


def test_plugins_may_share_a_configuration_as_deck_has_it(entities):
    """What a plugin says itself goes first; a configuration that is not there is a mistake."""
    shared = "_plugin_configs:\n  ids: {generator: uuid, header_name: X-Id}\n"
    (plugin,) = entities(
        f"{shared}plugins: [{{name: correlation-id, _config: ids, config: {{header_name: X}}}}]\n"
    ).plugins
    assert plugin.config == {"generator": "uuid", "header_name": "X"}

    with pytest.raises(UserError, match=r"plugins\[0\]\._config: there is no configuration 'id' in _plugin_configs"):
        entities(f"{shared}plugins: [{{name: correlation-id, _config: id}}]\n")


def test_plugins_and_credentials_of_others_get_a_warning(entities):
    """A plugin that Kong does not bring, an enterprise plugin, entities of plugins: one line each."""
    read = entities(
        "plugins: [{name: rate-limiting-advanced}, {name: our-own-audit}]\n"
        "keyauth_credentials: [{consumer: me, key: k}]\nacls: [{consumer: me, group: g}]\n"
    )

    assert [warning.split("/kong.yml:")[1].partition(";")[0] for warning in read.warnings] == [
        "2: keyauth_credentials: not simulated: nobody is authenticated",
        "3: acls: not simulated: nobody is authenticated",
        "1: plugins[0].name: plugin rate-limiting-advanced is not simulated: requests pass as if it were absent",
        "1: plugins[1].name: plugin our-own-audit is not simulated: requests pass as if it were absent",
    ]


def test_plugin_of_ones_own_whose_file_is_not_named_is_told_how_to_name_it(entities):
    """One of Kong's has no such file; one that is not enabled need not be, when it is named."""
    told = "; if it is one of your own, name its file with --plugin FILE, in a scenario in gateway.plugin_paths;"
    own, kongs = entities("plugins: [{name: price}, {name: key-auth}]\n").warnings
    assert f"absent{told} a stand-in" in own
    assert "absent; a stand-in" in kongs
    with pytest.raises(UserError, match=r"price is not enabled; name its file with --plugin FILE, or add it to K"):
        entities("plugins: [{name: price}]\n", enabled=["bundled"])


def test_plugin_that_is_enabled_by_name_is_no_mistake(entities):
    """However much its name looks like another."""
    read = entities("plugins: [{name: key-auth2}]\n", enabled=["bundled", "key-auth2"])
    assert "plugin key-auth2 is not simulated" in read.warnings[0]
    with pytest.raises(UserError, match=r"did you mean key-auth\? If it is one of your own, name its file with --"):
        entities("plugins: [{name: key-auth2}]\n")


def test_upstreams_have_their_targets_nested_or_beside_them(entities):
    """Hash and health fields are read with Kong's defaults; TLS of probes is left aside."""
    nested = entities(
        "upstreams:\n  - name: pool\n    hash_on: ip\n    tags: [a]\n    healthchecks:\n      threshold: 50\n"
        "      active: {https_sni: ~, https_verify_certificate: false, unhealthy: {interval: 5}}\n"
        "    targets: [{target: '10.0.0.1:80', weight: 10}, {target: b.example}]\n"
    )
    flat = entities(
        "targets: [{target: '10.0.0.1:80', weight: 10, upstream: {name: pool}},"
        " {target: b.example, upstream: pool}]\n"
        "upstreams:\n  - name: pool\n    algorithm: consistent-hashing\n    hash_on: ip\n"
        "    healthchecks: {threshold: 50, active: {unhealthy: {interval: 5}}}\n"
    )

    assert nested.upstreams == flat.upstreams
    pool = nested.upstreams[0]
    assert [(target.host, target.port, target.weight) for target in pool.targets] == [
        ("10.0.0.1", 80, 10),
        ("b.example", 8000, 100),
    ]
    assert pool.healthchecks.passive.unhealthy.http_statuses == (429, 500, 503)
    assert nested.warnings[0].endswith("https_verify_certificate: not simulated: connections are plain HTTP")


def test_https_of_a_service_is_spoken_without_tls(entities):
    """A warning names host and port that get plain HTTP."""
    read = entities("services:\n  - {name: a, url: 'https://a.example'}\n")

    assert (read.services[0].protocol, read.services[0].port) == ("https", 443)
    assert read.warnings[0].endswith("2: services[0].url: TLS is not simulated: a.example gets plain HTTP on port 443")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "services:\n  - name: a\n    hots: b\n",
            "kong.yml:3: services[0].hots: unknown field; did you mean host?",
        ),
        ("services:\n  - name: a\n", "kong.yml:2: services[0].host: missing; add host"),
        (
            "services:\n  - {name: a, host: b, path: '/c?d=e'}\n",
            "kong.yml:2: services[0].path: expected a path without query and fragment, not '/c?d=e'",
        ),
        (
            "services: [{name: a, url: 'http://user:secret@b/c'}]",
            "kong.yml:1: services[0].url: expected a URL of host, port and path; leave user, query and fragment out",
        ),
        (
            "services: [{name: a, url: 'http://b/c?d=e'}]",
            "kong.yml:1: services[0].url: expected a URL of host, port and path; leave user, query and fragment out",
        ),
        ("service: []\n", "kong.yml:1: service: unknown field; did you mean services?"),
        ("services: {}\n", "kong.yml:1: services: expected a list, not an empty mapping; begin each with -"),
        ("services: [a]\n", "kong.yml:1: services[0]: expected a mapping of fields, not 'a'"),
        (
            "_format_version: 3.0\n",
            "kong.yml:1: _format_version: expected one of 1.1, 2.1, 3.0, not 3.0; put it in quotes",
        ),
        ("_format_version: '4.0'\n", "kong.yml:1: _format_version: expected one of 1.1, 2.1, 3.0, not '4.0'"),
        (
            "routes:\n  - paths: ['~/a(b']\n",
            (
                "kong.yml:2: routes[0].paths[0]: '/a(b' is no regular expression that can be used here: missing ),"
                " unterminated subpattern at position 2"
            ),
        ),
        (
            "routes:\n  - paths: [a]\n",
            (
                "kong.yml:2: routes[0].paths[0]: expected a path that begins with /, or with ~/ for a regular"
                " expression, not 'a'; write /orders or ~/orders/\\d+$"
            ),
        ),
        (
            "routes:\n  - paths: [/a//b]\n",
            "kong.yml:2: routes[0].paths[0]: a path must not have empty segments, but '/a//b' has; write each / once",
        ),
        (
            "routes:\n  - hosts: ['a.*.b']\n",
            (
                "kong.yml:2: routes[0].hosts[0]: expected a host, or a wildcard such as *.example.com or example.*, not"
                " 'a.*.b'; the asterisk stands for the first or for the last labels"
            ),
        ),
        (
            "routes:\n  - headers: {host: [a]}\n",
            "kong.yml:2: routes[0].headers.host: host is no header to match on; write it in hosts",
        ),
        (
            "upstreams:\n  - {name: a, algorithm: random}\n",
            (
                "kong.yml:2: upstreams[0].algorithm: expected round-robin, consistent-hashing, least-connections or"
                " latency, not 'random'"
            ),
        ),
        (
            "upstreams:\n  - name: a\n    targets:\n      - target: a:b:c\n",
            (
                "kong.yml:4: upstreams[0].targets[0].target: expected host:port, not 'a:b:c'; write 10.0.0.1:8000 or"
                " orders.internal:8000"
            ),
        ),
        (
            "upstreams:\n  - name: a\ntargets:\n  - {target: 'a:1'}\n",
            "kong.yml:4: targets[0].upstream: missing; name the upstream that it belongs to",
        ),
        (
            "upstreams:\n  - name: a\ntargets:\n  - {target: 'a:1', upstream: b}\n",
            "kong.yml:4: targets[0].upstream: there is no upstream 'b'; known here: a",
        ),
        (
            "upstreams:\n  - name: a\n    targets: [{target: 'a'}, {target: 'a:8000'}]\n",
            "kong.yml:3: upstreams[0].targets[1].target: a second target of this address; keep one of them",
        ),
        (
            "upstreams:\n  - {name: a, hash_on: header}\n",
            "kong.yml:2: upstreams[0].hash_on_header: missing, hash_on is header; add hash_on_header",
        ),
        (
            "upstreams:\n  - {name: a, hash_on: cookie, hash_on_cookie: c, hash_fallback: ip}\n",
            "kong.yml:2: upstreams[0].hash_fallback: must be none, hash_on is cookie; leave it out",
        ),
        (
            'upstreams:\n  - {name: a, hash_on: cookie, hash_on_cookie: "a;c\\r\\nX: y"}\n',
            "kong.yml:2: upstreams[0].hash_on_cookie: expected the name of a cookie, not 'a;c\\r\\nX: y'",
        ),
        (
            'upstreams:\n  - {name: a, healthchecks: {active: {headers: {A: [b, "c\\r\\nX: y"]}}}}\n',
            (
                "kong.yml:2: upstreams[0].healthchecks.active.headers.A[1]: expected a header value, without line"
                " breaks, not 'c\\r\\nX: y'"
            ),
        ),
        (
            "services: [{name: orders, host: a.example}]\nroutes:\n  - paths: [/]\n    service: order\n",
            "kong.yml:4: routes[0].service: there is no service 'order'; did you mean orders?",
        ),
        (
            "services: [{name: orders, host: a.example}]\nroutes:\n  - {paths: [/], service: [orders]}\n",
            "kong.yml:3: routes[0].service: expected a name or an id, not a list",
        ),
        (
            "services: [{name: orders, host: a.example}]\nroutes:\n  - {paths: [/], service: {name: [orders]}}\n",
            "kong.yml:3: routes[0].service: expected a name or an id, not a mapping",
        ),
        (
            "upstreams: [{name: a}]\ntargets:\n  - {target: 'a:1', upstream: [a]}\n",
            "kong.yml:3: targets[0].upstream: expected a name or an id, not a list",
        ),
        (
            "plugins:\n  - {name: correlation-id, route: [all]}\n",
            "kong.yml:2: plugins[0].route: expected a name or an id, not a list",
        ),
        (
            "services:\n  - {name: a, host: a.example}\n  - {name: a, host: a.example}\n",
            "kong.yml:3: services[1].name: a second service named 'a'; give it another name",
        ),
        (
            "services:\n  - {id: i, name: a, host: a.example}\n  - {id: i, name: b, host: a.example}\n",
            "kong.yml:3: services[1].id: a second service with the id 'i'; give it another id",
        ),
        (
            "routes:\n  - {id: i, paths: [/a]}\n  - {id: i, paths: [/b]}\n",
            "kong.yml:3: routes[1].id: a second route with the id 'i'; give it another id",
        ),
        (
            "upstreams:\n  - {id: i, name: a}\n  - {id: i, name: b}\n",
            "kong.yml:3: upstreams[1].id: a second upstream with the id 'i'; give it another id",
        ),
        (
            "plugins:\n  - {id: i, name: correlation-id}\n  - {id: i, name: prometheus}\n",
            "kong.yml:3: plugins[1].id: a second plugin with the id 'i'; give it another id",
        ),
        (
            "services:\n  - {name: a, host: a.example}\n  - {id: a, name: b, host: a.example}\n",
            "kong.yml:3: services[1].id: a second service with the id 'a'; give it another id",
        ),
        (
            "plugins:\n  - name: opentelemtry\n",
            (
                "kong.yml:2: plugins[0].name: there is no plugin 'opentelemtry'; did you mean opentelemetry?"
                " If it is one of your own, name its file with --plugin FILE, in a scenario in gateway.plugin_paths;"
                " else list it in KONG_PLUGINS, or give it a stand-in"
            ),
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


def test_a_collector_to_which_nothing_would_be_exported_is_told(tmp_path):
    """The option fills a gap; where there is none the spans go elsewhere, or nowhere, and the user waits for them."""
    path = tmp_path / "kong.yml"
    path.write_text("_format_version: '3.0'\nplugins: [{name: correlation-id}]\n", encoding="utf-8")

    assert load(str(path), [Override(("collector",), ENDPOINT, "--collector")]).warnings == (
        "--collector: collector: nothing is exported there: no opentelemetry plugin leaves out where to",
    )
    assert load(str(path)).warnings == ()


def test_a_wrong_setting_names_the_option(tmp_path):
    """No file and no line is to blame."""
    path = tmp_path / "kong.yml"
    path.write_text("_format_version: '3.0'\n", encoding="utf-8")

    with pytest.raises(UserError, match=r"^--workers: workers: expected auto or a whole number"):
        load(str(path), [Override(("workers",), 0, "--workers")])


@pytest.mark.parametrize(
    ("field", "value", "numbers"),
    [
        ("batch_span_count", 0, "1 to 1000000"),
        ("batch_span_count", "true", "1 to 1000000"),
        ("batch_flush_delay", 3601, "0 to 3600"),
    ],
)
def test_mistake_in_a_deprecated_field_is_found_where_it_stands(tmp_path, field, value, numbers):
    """Not in the field that took its place, which the file does not have."""
    file = tmp_path / "kong.yml"
    text = f"plugins:\n  - name: opentelemetry\n    config:\n      traces_endpoint: http://a/\n      {field}: {value}\n"
    file.write_text(f"_format_version: '3.0'\n{text}", encoding="utf-8")

    message = rf"kong.yml:6: plugins\[0\].config.{field}: expected a whole number from {numbers}, not {value}$"
    with pytest.raises(UserError, match=message):
        load(str(file))


@pytest.mark.parametrize("text", ["{}", "_format_version:", "plugins: [{name: correlation-id}]"])
def test_a_kong_yml_of_its_own_says_its_format_version(tmp_path, text):
    """The real gateway refuses one that does not; a part of a scenario need not say it."""
    file = tmp_path / "kong.yml"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(UserError, match=r'kong.yml:1: _format_version: missing; add _format_version: "3.0"$'):
        load(str(file))


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("_format_version: '3.0'", True),
        ("plugins: [{name: correlation-id}]", True),
        ("name: a", False),
        ("{name: a, load: [], plugins: []}", False),
    ],
)
def test_a_kong_yml_is_known_by_its_format_version_or_its_entities(tmp_path, text, is_one):
    """A scenario has neither; one without its version is told that this is missing, not that it is no scenario."""
    file = tmp_path / "file.yml"
    file.write_text(text, encoding="utf-8")

    assert is_kong_yml(Document.read(str(file))) == is_one


def test_a_stand_in_takes_the_place_of_a_plugin_that_is_not_simulated(tmp_path):
    """With its name, its scope and its place in the order; what the file tells the real plugin is left alone."""
    path = tmp_path / "kong.yml"
    path.write_text(
        "_format_version: '3.0'\n"
        "routes: [{name: r, paths: [/], plugins: [{name: rate-limiting, config: {minute: 5}}]}]\n"
        "plugins: [{name: my-own, config: {a: 1}}]\n",
        encoding="utf-8",
    )
    told = {"rate-limiting": {"access": {"cpu": "1ms"}}, "my-own": {"log": {"spans": {"count": 2}}}}

    gateway = load(str(path), [Override(("stand_ins",), told, "--stand-in")])

    classes = gateway.plugin_classes
    assert [(plugin.name, plugin.route) for plugin in gateway.plugins] == [("rate-limiting", "r"), ("my-own", None)]
    assert (classes["rate-limiting"].PRIORITY, classes["my-own"].PRIORITY) == (910, 1000)
    confs = [configuration(classes[plugin.name], plugin.config) for plugin in gateway.plugins]
    assert (confs[0].access.cpu, confs[1].log.spans.count) == (0.001, 2)
    assert gateway.warnings == ()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"zipkin": {}},
            "--stand-in: stand_ins.zipkin: there is no plugin zipkin in the configuration to stand in for",
        ),
        (
            {"correlation-id": {}},
            "--stand-in: stand_ins.correlation-id: plugin correlation-id runs itself and needs no",
        ),
        ({"key-auth": {"acces": {}}}, "--stand-in: stand_ins.key-auth.acces: unknown field; did you mean access?"),
        (
            {"key-auth": {"access": {"cpu": 1}}},
            "--stand-in: stand_ins.key-auth.access.cpu: expected a duration such as",
        ),
    ],
)
def test_a_stand_in_that_cannot_be_is_refused(tmp_path, told, message):
    """Nothing is ever ignored."""
    path = tmp_path / "kong.yml"
    path.write_text("_format_version: '3.0'\nplugins: [{name: key-auth}]\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(str(path), [Override(("stand_ins",), told, "--stand-in")])
    assert str(caught.value).startswith(message)
