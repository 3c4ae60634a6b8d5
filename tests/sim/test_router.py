"""Which route a request goes to."""

from types import SimpleNamespace

import pytest

from sim.entity import Route, Service
from sim.router import FINDINGS_MAX, Router, normalized

ORDERS = Service(name="orders", host="127.0.0.1", port=8080)
NAMED = Service(name="named", host="upstream", path="/base/")


def asked(method="GET", host="h", path="/", headers=()):
    """A request as the router sees one."""
    lines = [(name.encode(), value.encode()) for name, value in headers]
    name = host.lower().rpartition(":")[0] if ":" in host else host.lower()
    return SimpleNamespace(
        method=method,
        host=name,
        authority=host.encode(),
        path=path,
        raw_path=path.encode("latin-1"),
        lines=lines,
        forwarded_lines=lambda: lines,
    )


def route(name, **matched):
    return Route.model_validate({"name": name, "service": "orders"} | matched)


def find(routes, services=(ORDERS, NAMED), **request):
    return Router(tuple(routes), services).match(asked(**request))


def match(routes, **request):
    found = find(routes, **request)
    return found.route.name if found else None


# What matches.


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("example.com", "example.com", True),
        ("example.com", "example.com:8000", True),
        ("example.com", "www.example.com", False),
        ("Example.com", "eXample.com", True),
        ("example.com:8000", "example.com:8000", True),
        ("example.com:8000", "example.com", False),
        ("example.com:80", "example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "a.example.com:8000", True),
        ("*.example.com:8000", "a.example.com:8000", True),
        ("*.example.com:8000", "a.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.exampleXcom", False),
        ("example.*", "example.org", True),
        ("example.*", "example", False),
        ("example.*", "an.example.org", False),
    ],
)
def test_host_matches_as_a_whole_or_by_its_wildcard(pattern, host, matches):
    """A host is compared without case, and without port unless one is asked for; a wildcard stands at one end."""
    assert (match([route("r", hosts=(pattern,))], host=host) == "r") is matches


@pytest.mark.parametrize(
    ("path", "asked_path", "matches"),
    [
        ("/a", "/a", True),
        ("/a", "/abc", True),
        ("/a", "/A", False),
        ("/a b".replace(" ", "%20"), "/a%20b", True),
        ("/a", "/x/../a", True),
        ("/a/b", "/a//b", True),
        ("/a", "/%61", True),
        ("~/a/\\d+$", "/a/12", True),
        ("~/a/\\d+$", "/a/12/b", False),
        ("~/a/\\d+", "/a/12/b", True),
        ("~/a", "/b/a", False),
        ("~/(?<what>b|c)/x", "/c/x", True),
        ("~/ab*/c", "/a/c", True),
        ("~/ab?/c", "/a/c", True),
        ("~/ab{0,1}/c", "/a/c", True),
        ("~/ab+/c", "/abb/c", True),
        ("~/b|/a/", "/a/c", True),
        ("~/a\\.b", "/a.b", True),
        ("~/a\\.b", "/axb", False),
        ("~/a/(?i)b", "/a/B", True),
        ("~/a/(?i)b", "/A/b", False),
    ],
)
def test_path_matches_as_a_prefix_or_by_its_regular_expression(path, asked_path, matches):
    """Paths are compared in normal form; a regular expression holds from the beginning, not to the end."""
    assert (match([route("r", paths=(path,))], path=asked_path) == "r") is matches


@pytest.mark.parametrize(
    ("wanted", "given", "matches"),
    [
        ({"x-team": ["a", "b"]}, [("X-Team", "B")], True),
        ({"x-team": ["a"]}, [("X-Team", "c")], False),
        ({"x-team": ["a"]}, [("X-Team", "c"), ("x-team", "a")], True),
        ({"x-team": ["a"]}, [], False),
        ({"x-team": ["a"], "x-more": ["1"]}, [("x-team", "a")], False),
        ({"x-team": ["a"], "x-more": ["1"]}, [("x-more", "1"), ("x-team", "a")], True),
        ({"x-version": ["~*^v[12]$"]}, [("x-version", "V2")], True),
        ({"x-version": ["~*^v[12]$"]}, [("x-version", "v3")], False),
        ({"x-team": ["Köln"]}, [("x-team", "kÖln")], False),
        ({"x-team": ["Köln"]}, [("x-team", "KöLN")], True),
        ({"x-team": ["~*^k.ln$"]}, [("x-team", "KöLN")], True),
    ],
)
def test_each_header_has_to_be_there_with_one_of_its_values(wanted, given, matches):
    """Names and values are compared without the case of A to Z; `~*` begins a regular expression."""
    assert (match([route("r", headers=wanted)], headers=given) == "r") is matches


def test_method_has_to_be_one_of_those_named():
    """Others find no route."""
    routes = [route("r", methods=("GET", "PUT"))]
    assert [match(routes, method=method) for method in ("GET", "PUT", "POST")] == ["r", "r", None]


def test_no_route_is_found_where_none_matches():
    """Also when there are none at all."""
    assert match([], path="/") is None
    assert match([route("r", paths=("/a",))], path="/b") is None


# Which comes first.

LADDER = [
    {"hosts": ["h"], "headers": {"x": ["1"]}, "paths": ["/a"], "methods": ["GET"]},
    {"hosts": ["h"], "headers": {"x": ["1"]}, "paths": ["/a"]},
    {"hosts": ["h"], "headers": {"x": ["1"]}, "methods": ["GET"]},
    {"hosts": ["h"], "paths": ["/a"], "methods": ["GET"]},
    {"headers": {"x": ["1"]}, "paths": ["/a"], "methods": ["GET"]},
    {"hosts": ["h"], "headers": {"x": ["1"]}},
    {"hosts": ["h"], "paths": ["/a"]},
    {"hosts": ["h"], "methods": ["GET"]},
    {"headers": {"x": ["1"], "y": ["2"]}, "paths": ["/a"]},
    {"headers": {"x": ["1"]}, "paths": ["/a"]},
    {"headers": {"x": ["1"]}, "methods": ["GET"]},
    {"paths": ["/a/b"], "methods": ["GET"]},
    {"paths": ["/a"], "methods": ["GET"]},
    {"hosts": ["*.h", "h"]},
    {"headers": {"x": ["1"]}},
    {"paths": ["~/a.*"], "regex_priority": 3},
    {"paths": ["~/a/b.*"], "created_at": 1},
    {"paths": ["~/a/b/?c.*"], "created_at": 2},
    {"paths": ["~/a/b/?.*"]},
    {"paths": ["/a/b"]},
    {"paths": ["/a"], "created_at": 5},
    {"paths": ["/a"]},
    {"methods": ["GET"]},
]
"""Each matches the same request, and each comes before those below it."""


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_route_of_the_highest_rank_wins(rung):
    """Wherever it stands in the file: more kinds of criteria, then which kinds, then what is said of them."""
    below = [route(f"r{number}", **LADDER[number]) for number in range(rung, len(LADDER))]
    request = {"host": "h", "path": "/a/b/c", "headers": [("x", "1"), ("y", "2")]}
    assert match(below, **request) == f"r{rung}"
    assert match(below[::-1], **request) == f"r{rung}"


def test_wildcard_with_a_port_comes_before_a_plain_host():
    """As in Kong, where the port weighs more."""
    routes = [route("plain", hosts=("a.example.com",)), route("wild", hosts=("*.example.com:8000",))]
    assert match(routes, host="a.example.com:8000") == "wild"
    assert match(routes, host="a.example.com") == "plain"


def test_plain_host_comes_before_a_wildcard():
    """A route with both counts as one with a wildcard."""
    routes = [
        route("both", hosts=("*.example.com", "a.example.com"), paths=("/long",)),
        route("plain", hosts=("a.example.com",), paths=("/",)),
    ]
    assert match(routes, host="a.example.com", path="/long") == "plain"
    assert match(routes, host="b.example.com", path="/long") == "both"


def test_order_of_the_file_decides_between_equals():
    """Of routes that cannot be told apart by rank, the first wins."""
    assert match([route("one", paths=("/a",)), route("two", paths=("/a",))], path="/a") == "one"


def test_each_path_of_a_route_has_its_own_rank():
    """A route with a short and a long path is not ranked by the longer one where the shorter matches."""
    routes = [route("two", paths=("/a", "/long/one")), route("one", paths=("/a/b",))]
    assert match(routes, path="/a/b") == "one"


# What the service is asked for.

PREFIXED = "/api"


@pytest.mark.parametrize(
    ("base", "handling", "strip", "path", "upstream_path"),
    [
        (None, "v0", True, "/api/v1/x", "/v1/x"),
        (None, "v0", True, "/api", "/"),
        (None, "v0", True, "/apix", "/x"),
        (None, "v0", True, "/api/", "/"),
        (None, "v0", False, "/api/v1", "/api/v1"),
        ("/base", "v0", True, "/api/v1", "/base/v1"),
        ("/base", "v0", True, "/api", "/base"),
        ("/base", "v0", True, "/apix", "/base/x"),
        ("/base", "v0", False, "/api/v1", "/base/api/v1"),
        ("/base/", "v0", True, "/api/v1", "/base/v1"),
        ("/base/", "v0", True, "/api", "/base"),
        ("/base/", "v0", False, "/api/", "/base/api/"),
        (None, "v1", True, "/api/v1", "/v1"),
        (None, "v1", True, "/apix", "/x"),
        (None, "v1", False, "/api/v1", "/api/v1"),
        ("/base", "v1", True, "/apix", "/basex"),
        ("/base", "v1", True, "/api/v1", "/base/v1"),
        ("/base", "v1", False, "/api/v1", "/baseapi/v1"),
        ("/base/", "v1", True, "/api/v1", "/base/v1"),
        ("/base", "v0", True, "/api/a%20b%2Fc", "/base/a%20b%2Fc"),
        ("/base", "v0", True, "/api/../../x/../api/./y", "/base/y"),
    ],
)
def test_service_is_asked_for_its_own_path_and_the_rest(base, handling, strip, path, upstream_path):
    """`path_handling` says how the service's path and what is left of the request's are joined."""
    service = Service(name="orders", host="h", path=base)
    found = find([route("r", paths=(PREFIXED,), strip_path=strip, path_handling=handling)], (service,), path=path)
    assert found.upstream_path.decode() == upstream_path


@pytest.mark.parametrize(
    ("paths", "path", "upstream_path"),
    [
        (["~/v(\\d)/"], "/v1/orders", "/orders"),
        (["~/v\\d"], "/v1", "/"),
        (["~/v(\\d)/"], "/v1/../../etc", None),
        ([], "/any/thing", "/any/thing"),
        (["/a"], "/a./b", "/b"),
        (["/a"], "/a..", "/"),
    ],
)
def test_what_a_regular_expression_matched_is_stripped(paths, path, upstream_path):
    """The rest is what follows the match, without dots ahead; where a route has no path nothing is stripped."""
    found = find([route("r", paths=paths, methods=("GET",))], path=path)
    assert (found and found.upstream_path.decode()) == upstream_path


def test_captures_are_at_hand():
    """Groups by number and by name; one that took no part is empty."""
    found = find([route("r", paths=("~/v(\\d)/(?<kind>\\w+)(-x)?",))], path="/v2/orders")
    assert found.captures.unnamed == ("2", "orders", "")
    assert found.captures.named == {"kind": "orders"}


@pytest.mark.parametrize("path", ["/a%0d%0aX:%201", "/a%00", "/a%20HTTP/1.1%0d%0a", "/\xe4\x01"])
def test_what_is_decoded_goes_out_escaped(path):
    """No path brings a byte into the request line, or into a header, that does not belong there."""
    whole, nothing = (find([route("r", paths=(pattern,))], path=path) for pattern in ("/", r"~/[\s\S]+"))
    assert (nothing.stripped, whole.stripped) == (whole.upstream_path, b"")
    assert all(0x20 < byte < 0x7F for byte in whole.upstream_path)


def test_host_header_and_address_are_known_with_the_route():
    """A service with an address needs no resolver; the usual port goes without saying."""
    routes = (route("a", paths=("/a",)), Route(name="n", service="named", paths=("/n",)))
    router = Router(routes, (ORDERS, NAMED))
    address, name = router.match(asked(path="/a")), router.match(asked(path="/n"))
    assert (address.address, address.upstream_host) == (("127.0.0.1", 8080), b"127.0.0.1:8080")
    assert (name.address, name.upstream_host) == (None, b"upstream")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example", b"a.example"),
        ("https://a.example", b"a.example"),
        ("http://a.example:443", b"a.example:443"),
        ("http://[::1]:8080", b"[::1]:8080"),
        ("http://[::1]", b"[::1]"),
    ],
)
def test_host_header_has_the_port_that_is_not_usual(url, host):
    """And IPv6 addresses in brackets."""
    service = Service.model_validate({"name": "orders", "url": url})
    assert find([route("r", paths=("/",))], (service,)).upstream_host == host


def test_route_may_have_no_service():
    """Its plugins answer."""
    found = find([route("r", service=None, paths=("/",))])
    assert (found.route.name, found.service) == ("r", None)


def test_findings_are_bounded():
    """However many paths are asked for, a bounded number is remembered, and all are answered."""
    router = Router((route("r", paths=("/",)),), (ORDERS,))
    for number in range(2 * FINDINGS_MAX + 1):
        assert router.match(asked(path=f"/{number}")).route.name == "r"
    assert len(router._found) <= FINDINGS_MAX


@pytest.mark.parametrize(("hosts", "headers"), [(["h:81"], {}), ([], {"x": ["1"]}), (["h:81"], {"x": ["1"]})])
def test_what_is_remembered_holds_for_the_same_port_and_headers_alone(hosts, headers):
    """Two requests for one path may go to different routes."""
    routes = (route("narrow", hosts=hosts, headers=headers, paths=("/",)), route("wide", paths=("/",)))
    router = Router(routes, (ORDERS,))
    narrow = {"host": "h:81", "headers": [("x", "1")]}
    for request in (narrow, {}, narrow, {}):
        assert router.match(asked(**request)).route.name == ("narrow" if request else "wide")


def test_long_paths_are_not_remembered():
    """They are answered all the same."""
    router = Router((route("r", paths=("/",)),), (ORDERS,))
    assert router.match(asked(path="/" + 5000 * "a")).route.name == "r"
    assert not router._found


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("/a/b/", "/a/b/"),
        ("//a///b", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/../../a", "/a"),
        ("/a/..", "/"),
        ("/a/b/.", "/a/b/"),
        ("/%7euser/%2f%2e%2e", "/~user/%2F.."),
        ("/%2e%2e/a", "/a"),
        ("/a%2", "/a%2"),
        ("/.hidden/..a", "/.hidden/..a"),
    ],
)
def test_normal_form_of_a_path(path, normal):
    """Needless triplets, dot segments and double slashes go; reserved characters stay escaped."""
    assert normalized(path) == normal
