import pytest
from pydantic import ValidationError

from sim.entity import Plugin, Route, Service, path_pattern
from sim.errors import FieldError


def test_service_url_stands_for_its_parts():
    """`url` is shorthand for host, port and path."""
    service = Service.model_validate({"name": "orders", "url": "http://default:9000/api"})

    assert (service.host, service.port, service.path) == ("default", 9000, "/api")
    assert Service.model_validate({"name": "orders", "url": "http://default"}).port == 80


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://MyOrders/", "MyOrders"),
        ("http://MyOrders:80", "MyOrders"),
        ("http://Orders.Internal", "Orders.Internal"),
        ("HTTP://[2001:DB8::1]:80/", "2001:DB8::1"),
    ],
)
def test_host_of_a_service_url_stays_as_it_is_written(url, host):
    """It may be the name of an upstream, and these are compared letter by letter (Kong, `get_upstream_by_name`)."""
    assert Service.model_validate({"name": "orders", "url": url}).host == host


def test_service_has_the_defaults_of_kong():
    """A minute for each step, and five retries."""
    service = Service(name="orders", host="default")

    assert (service.connect_timeout, service.write_timeout, service.read_timeout) == (60_000, 60_000, 60_000)
    assert (service.retries, service.port, service.path) == (5, 80, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://a", "host": "b"},
        {"url": "http://a:99999"},
        {"url": "a"},
        {"host": "a b"},
        {"host": "a", "connect_timeout": 0},
        {"host": "a", "retries": 40_000},
        {"host": "a", "protocol": "grpc"},
        {},
    ],
)
def test_service_out_of_range_is_refused(fields):
    """Kong's ranges hold."""
    with pytest.raises(ValidationError):
        Service.model_validate({"name": "orders"} | fields)


def test_route_needs_something_to_match():
    """A route without paths, hosts and methods is an error, as in Kong."""
    assert Route(name="all", service="orders", paths=("/",)).strip_path
    with pytest.raises(ValidationError, match="matches nothing"):
        Route(name="all", service="orders")


@pytest.mark.parametrize(
    ("text", "takes", "refuses"),
    [
        (r"/p/[[:digit:]]+$", "/p/12", "/p/x"),
        (r"/p/[^[:space:]x]$", "/p/y", "/p/x"),
        (r"/p/[]_[:alpha:]-]+$", "/p/a]_-", "/p/1"),
        (r"/p/\[[[:xdigit:]]$", "/p/[a", "/p/a"),
        (r"/p/[[:punct:]]+$", "/p/[]^-\\", "/p/a"),
        (r"/p/[a&&b]$", "/p/&", "/p/c"),
        (r"/p/[+--]$", "/p/,", "/p/a"),
        (r"/p/[a||b~~]$", "/p/~", "/p/c"),
        (r"/p/[[a]$", "/p/[", "/p/]"),
        (r"/p/[\[:digit:]x]$", "/p/[x]", "/p/1x]"),
        (r"/p/[\[:alpha:]+$", "/p/[alpha:", "/p/b"),
        (r"/p/[\\[:digit:]]+$", "/p/\\1", "/p/d"),
        (r"/(?<n>\d)\z", "/1", "/1\n"),
        (r"/p/\\z$", "/p/\\z", "/p/\\"),
        (r"/p/[(?<a]$", "/p/<", "/p/P"),
        (r"/p/[(?i)]$", "/p/?", "/p/I"),
        (r"/p/(?#a(b)c$", "/p/c", "/p/b"),
    ],
)
def test_regular_expression_means_what_it_means_to_pcre(text, takes, refuses):
    """Within a set, nothing but classes of POSIX, ranges and escapes is more than a character."""
    pattern = path_pattern(text)
    assert (bool(pattern.match(takes)), bool(pattern.match(refuses))) == (True, False)


@pytest.mark.parametrize(
    ("text", "takes", "refuses"),
    [
        ("/a(?i)b", ["/ab", "/aB"], ["/Ab", "/AB"]),
        ("/a(?i)b|/c", ["/aB", "/C"], ["/AB"]),
        ("/a(?i)b|/c(?i)d|/e", ["/aB", "/CD", "/E"], ["/AB"]),
        ("/a|/(?i)b|/c", ["/a", "/B", "/C"], ["/A"]),
        ("/(a(?i)b|c)d", ["/aBd", "/Cd"], ["/aBD", "/cD", "/ABd"]),
        ("/((?i)a|(b(c)))d", ["/Ad", "/BCd"], ["/aD"]),
        ("/(?<n>(?i)a|)d", ["/Ad", "/d"], ["/D"]),
        ("/(?i)a(?=b|c)", ["/ab", "/AB", "/AC"], ["/A"]),
        (r"/(?i)[|)a]\|\)b", ["/)|)B", "/A|)b"], ["/b"]),
        ("(?i)/a|/b", ["/A", "/B"], ["/C"]),
    ],
)
def test_option_within_a_regular_expression_holds_to_the_end_of_its_group(text, takes, refuses):
    """In all alternatives that follow, and in no other group than its own (pcre2pattern, "Internal option setting")."""
    pattern = path_pattern(text)
    assert [path for path in (*takes, *refuses) if pattern.match(path)] == takes


@pytest.mark.parametrize("text", ["/a(?i)b)", "/(a(?i)b", "/a(?i)*", "/a(?-i)b", "/a(?s)b", "/a(?i", "/(?i))(a"])
def test_option_that_python_cannot_have_there_is_refused(text):
    """Rather than read as another one."""
    with pytest.raises(FieldError, match="is no regular expression that can be used here: "):
        path_pattern(text)


@pytest.mark.parametrize(
    "text",
    [
        "/p/[:digit:]+",
        r"/p/\[[:digit:]]",
        "/p/[[:digits:]]",
        "/p/[[:^digit:]]",
        "/p/[[.a.]]",
        "/p/[[=a=]]",
        "/p/(",
        "/p/a{99999999999}",
        f"/p/{5_000 * '('}{5_000 * ')'}",
    ],
)
def test_regular_expression_that_python_would_read_otherwise_is_refused(text):
    """A class of POSIX outside of a set, as PCRE has it, and what is not known here."""
    with pytest.raises(FieldError, match="is no regular expression that can be used here: "):
        path_pattern(text)


def test_ids_are_the_same_in_every_run_and_differ_by_scope():
    """A queue is named after its plugin's id, so it must not change between runs."""  # O18
    of_all = Plugin(name="opentelemetry")

    assert of_all.id == Plugin(name="opentelemetry").id
    assert of_all.id != Plugin(name="opentelemetry", service="orders").id
