"""What plugins call: a service under every name, address and port, which does what the program says."""

import json
import textwrap

import pytest

from sim.errors import UserError
from sim.verify import trial
from sim.verify.bench import Bench
from sim.verify.outside import read_answers
from sim.verify.program import CALLED, Program, Visit
from sim.verify.search import Search
from sim.verify.trial import Suspects

LEAKY = """
class Shop:
    PRIORITY = 1000
    VERSION = "1"

    async def access(self, kong, conf):
        span = kong.tracing.start_span("ask")
        answer, error = await kong.ngx.http.new().request_uri("http://quota.internal:9100/")
        if {condition}:
            return
        span.finish()
"""


def asking(*lines):
    """The source of a plugin whose access runs these lines, and answers what they find."""
    head = "class Shop:\n    PRIORITY = 1000\n    VERSION = '1'\n\n    async def access(self, kong, conf):\n"
    return head + textwrap.indent("\n".join([*lines, "kong.response.exit(200, repr(found))"]), " " * 8)


HTTP = (
    "client = kong.ngx.http.new()",
    "client.set_timeout(1000)",
    "answer, error = await client.request_uri('{}')",
    "found = error or (answer.status, len(answer.body))",
)

SOCKET = (
    "sock = kong.ngx.socket.tcp()",
    "sock.settimeout(1000)",
    "connected, error = await sock.connect('cache.internal', 6379)",
    "found = error",
    "if connected:",
    "    await sock.send('[PING]\\r\\n')",
    "    found = await sock.receive('*l')",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The programs in which one thing is unusual, all of them, of few requests."""
    monkeypatch.setattr("sim.verify.search.PROGRAMS", 1)
    monkeypatch.setattr("sim.verify.search.SEARCH_S", 300.0)
    monkeypatch.setattr("sim.verify.program.TIMES", (1, 2, 5))


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Write a plugin; the working directory is where it is."""
    monkeypatch.chdir(tmp_path)

    def write(source):
        (tmp_path / "shop.py").write_text(source)
        return "shop.py"

    return write


@pytest.fixture
def gateway(shop):
    """Make a gateway with a plugin."""
    benches = []

    def make(source):
        bench = Bench()
        benches.append(bench)
        bench.use(shop(source))
        return bench

    yield make
    for bench in benches:
        bench.close()


def found(bench, **options):
    """What the plugin has found."""
    return eval(bench.get(**options).body)


def mistakes(file, answers=None):
    verdict = Search(Suspects((file,), {}, answers or {}), 0).run()
    return {(shown.mistake.code, shown.mistake.place.line): shown for shown in verdict.shown}


@pytest.mark.parametrize(
    ("condition", "called"),
    [
        ("answer and answer.status == 200", "answers"),
        ("answer and answer.status == 503", "fails"),
        ("error == 'connection refused'", "refuses"),
        ("error == 'timeout'", "is silent"),
        ("error == 'name or service not known'", "is unknown"),
        ("error and 'invalid response' in error", "talks nonsense"),
        ("error and 'prematurely closed' in error", "resets"),
    ],
)
def test_every_way_out_of_a_call_is_run(shop, condition, called):
    """The answer as well as each failure; the smallest program says which of them it was."""
    shown = mistakes(shop(LEAKY.format(condition=condition)))["KT005", 7]

    assert shown.program in {Program((Visit(called=does),)) for does in (called, "resets", "breaks off")}
    assert shown.program.text(calls=shown.calls).endswith(f"; what the plugin calls {shown.program.steps[0].called}")


def test_second_call_of_a_request_fails_too(shop):
    """Who asks twice may get one answer."""
    source = LEAKY.format(condition="error").replace(
        "        answer, error",
        "        await kong.ngx.http.new().request_uri('http://token.internal/')\n        answer, error",
    )
    one = source.replace("if error:", "if error and token[0]:").replace(
        "        await kong", "        token = await kong"
    )

    shown = mistakes(shop(one))["KT005", 7]

    assert shown.program == Program((Visit(called="answers once"),))


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("answers", (200, 100)),
        ("fails", (503, 100)),
        ("is slow", (200, 100)),
        ("refuses", "connection refused"),
        ("answers once", (200, 100)),
        ("resets", "upstream prematurely closed connection"),
        ("breaks off", "upstream prematurely closed connection"),
        ("talks nonsense", "upstream sent an invalid response: expected dot"),
        ("is silent", "timeout"),
        ("is unknown", "name or service not known"),
    ],
)
def test_http_client_meets_what_is_said(gateway, called, expected):
    """Whatever host and port it asks."""
    bench = gateway(asking(*HTTP).format("http://quota.internal:9100/left?client=7"))
    assert found(bench, called=called) == expected


def test_table_of_calls_is_complete():
    """Each of them is tested above."""
    cases = next(mark for mark in test_http_client_meets_what_is_said.pytestmark).args[1]
    assert [called for called, _expected in cases] == list(CALLED)


@pytest.mark.parametrize("uri", ["http://10.1.2.3/", "http://127.0.0.1:9/", "http://[::1]:80/", "https://a.example/"])
def test_addresses_and_https_are_answered_too(gateway, uri):
    """A service is there under each address, and no certificate is asked for."""
    bench = gateway(asking(*HTTP).format(uri))
    assert found(bench) == (200, 100)
    assert found(bench, called="refuses") == "connection refused"
    assert bench.finish() == []


def test_address_has_no_route_where_a_name_is_unknown(gateway):
    """An address is looked up by nobody."""
    bench = gateway(asking(*HTTP).format("http://10.1.2.3/"))
    assert found(bench, called="is unknown") == "no route to host"


@pytest.mark.parametrize("name", ["", "a b", "a..b", "-a", "x" * 64, "caf\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_what_cannot_be_a_name_is_unknown(gateway, name):
    """A name is made of letters, digits and dashes."""
    bench = gateway(asking("sock = kong.ngx.socket.tcp()", f"found = await sock.connect({name!r}, 80)"))
    assert found(bench) == (None, "name or service not known")


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("answers", (b"+OK", None, b"")),
        ("is slow", (b"+OK", None, b"")),
        ("fails", (None, "closed", b"")),
        ("refuses", "connection refused"),
        ("resets", (None, "closed", b"")),
        ("breaks off", (None, "closed", b"+O")),
        ("talks nonsense", (b"HTTP/9 nonsense", None, b"")),
        ("is silent", "timeout"),
        ("is unknown", "name or service not known"),
    ],
)
def test_socket_meets_what_is_said(gateway, called, expected):
    """In a protocol that is not HTTP, with the text that the test gives."""
    bench = gateway(asking(*SOCKET))
    bench.answer("cache.internal:6379", text="+OK\r\n")
    assert found(bench, called=called) == expected


def test_socket_is_listened_to_where_no_text_is_given(gateway):
    """What it sends is taken; what it waits for does not come, and its timeout ends that."""
    assert found(gateway(asking(*SOCKET))) == (None, "timeout", b"")


def test_each_part_of_what_is_not_http_is_replied_to(gateway):
    """A protocol of questions and replies goes on as long as the plugin asks."""
    again = ("await sock.send('[PING]\\r\\n')", "found = (found, await sock.receive('*l'))")
    bench = gateway(asking(*SOCKET, *again))
    bench.answer("cache.internal", text=b"+OK\r\n")
    assert found(bench) == ((b"+OK", None, b""),) * 2


def test_long_line_that_is_not_http_ends(gateway):
    """Also one that could be a very long head of HTTP."""
    bench = gateway(asking(*SOCKET).replace("'[PING]\\r\\n'", "'GET /' + 'a' * 200_000"))
    assert found(bench) == (None, "timeout", b"")


def test_answers_are_given_by_host_and_port(gateway):
    """The port's goes before the host's; a body that is no text is JSON; it can change from request to request."""
    bench = gateway(
        asking(
            "ask = kong.ngx.http.new().request_uri",
            "one, two, three = [(await ask(f'http://{host}/'))[0] for host in ('a.test', 'a.test:81', 'b.test')]",
            "found = [(each.status, each.headers.get('x-left'), each.headers.get('content-type'), each.body)"
            " for each in (one, two, three)]",
        )
    )
    bench.answer("A.test", status=429, headers={"X-Left": 0}, body="none")
    bench.answer("a.test:81", body={"limit": 3})
    usual = (200, None, None, b"x" * 100)
    assert found(bench) == [(429, "0", None, b"none"), (200, None, "application/json", b'{"limit": 3}'), usual]
    bench.answer("a.test", body=b"")
    assert found(bench)[0] == (200, None, None, b"")


def test_what_services_do_holds_until_the_next_request(gateway, shop):
    """For timers too, which no request waits for."""
    bench = gateway(
        asking("found = kong.timer.at(1, self.work, kong)").replace(
            "    async def access",
            "    async def work(self, premature, kong):\n"
            "        kong.log.notice((await kong.ngx.http.new().request_uri('http://a.test/'))[1])\n\n"
            "    async def access",
        )
    )
    bench.get(called="refuses")
    bench.advance(2.0)
    bench.get()
    bench.advance(2.0)
    assert [
        message.partition("shop.py:6 ")[2].split(",")[0] for _level, message in bench.log if "shop.py:6" in message
    ] == [
        "connection refused",
        "None",
    ]


def test_target_that_a_plugin_names_is_one_of_these_services(gateway):
    """Under whatever name: the request goes there in place of the gateway's own service."""
    head = asking().partition("    async")[0]
    bench = gateway(f"{head}    def access(self, kong, conf): kong.service.set_target('other.internal', 8080)\n")
    bench.answer("other.internal", status=201)
    assert [bench.get(called=called).status for called in ("answers", "fails", "refuses")] == [201, 503, 502]


def test_service_that_does_not_exist_is_told(gateway):
    """With those that do."""
    bench = gateway(asking("found = 1"))
    with pytest.raises(UserError, match=r"^called: no service is slwo; did you mean is slow\?$"):
        bench.get(called="is slwo")


def test_trial_with_calls_is_the_same_each_time(shop):
    """Nothing of it is drawn."""
    suspects = Suspects((shop(LEAKY.format(condition="error")),))
    program = Program(tuple(Visit(called=called, times=3, gap_ms=0) for called in CALLED[:6]))
    first, second = (trial.run(suspects, program) for _ in range(2))
    assert first == second
    assert first.called == {"quota.internal:9100"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([], "must be a mapping by host"),
        ({"a": 3}, "a: expected a mapping or a text, not 3"),
        ({"a": {"stats": 3}}, "a: it has the unknown field stats; known here: status, headers, body"),
        ({"a": {"status": 100}}, "a: status cannot be 100; write a number from 200 to 599"),
        ({"a": {"headers": []}}, "a: headers cannot be an empty list"),
        (
            {"a": {"headers": {"X-A": "1\r\nX-B: 2"}}},
            "a: headers.x-a: expected a header value",
        ),
        ({"a": {"headers": {"X A": 1}}}, "a: headers.x a: expected the name of a header, not 'x a'"),
        ({"a": {"headers": {"Content-Length": 3}}}, "a: the header content-length is that of the body"),
    ],
)
def test_answer_that_cannot_be_is_told(told, message):
    """Which host, which field, what was expected."""
    with pytest.raises(UserError) as raised:
        read_answers(told)
    assert str(raised.value).startswith(message)


PARSING = """
import json


class Shop:
    PRIORITY = 1000
    VERSION = "1"

    async def access(self, kong, conf):
        answer, error = await kong.ngx.http.new().request_uri("http://quota.internal:9100/")
        if error is not None or answer.status != 200:
            kong.response.exit(503)
        if json.loads(answer.body)["limit"] == 3:
            kong.tracing.start_span("leaks")
"""


def verify(capsys, *arguments):
    from sim.cli import commands

    code = commands.main(["verify", *arguments], prog_name="kongsim", standalone_mode=False)
    return code, capsys.readouterr()


def test_answers_are_an_option_of_the_command(shop, capsys):
    """What is behind the answer is seen then; the line that replays has them too, and JSON says who was called."""
    file, answers = shop(PARSING), json.dumps({"quota.internal": {"body": {"limit": 3}}}, separators=(",", ":"))

    _code, told = verify(capsys, file, "--answers", answers, "--format", "json")

    report = json.loads(told.out)
    assert [(mistake["code"], mistake["line"]) for mistake in report["mistakes"]] == [("KT005", 14)]
    assert report["called"] == ["quota.internal:9100"]
    assert f"--answers '{answers}'" in report["mistakes"][0]["replay"]
    assert told.err == ""


def test_answer_of_a_service_that_nobody_calls_is_told(shop, capsys):
    """Its name may be misspelt."""
    options = ("--answers", '{"qouta.internal": {}}', "--replay", '{"steps":[{"called":"fails"}]}')
    code, told = verify(capsys, shop(PARSING), *options)
    assert code == 0
    assert told.err == "--answers: nobody has called qouta.internal; called were quota.internal:9100\n"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("nonsense", "--answers: is no JSON: "),
        ("[]", "--answers: must be a mapping by host; write '{"),
    ],
)
def test_wrong_answers_are_told_in_one_line(shop, capsys, answers, message):
    """Before anything is run."""
    with pytest.raises(UserError) as raised:
        verify(capsys, shop(PARSING), "--answers", answers)
    assert str(raised.value).startswith(message)
