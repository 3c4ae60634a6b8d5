"""Which route a request goes to."""

import pytest

from sim.config import Route, Service
from sim.router import FINDINGS_MAX, Router

ORDERS = Service(name="orders", host="127.0.0.1", port=8080)
NAMED = Service(name="named", host="upstream", path="/base/")


def route(name, **matched):
    return Route(**{"name": name, "service": "orders"} | matched)


def match(routes, method="GET", host="h", path="/"):
    found = Router(tuple(routes), (ORDERS, NAMED)).match(method, host, path)
    return found.route.name if found else None


def test_longer_path_comes_first():
    """Of two routes that match, the one with the longer path wins, wherever it stands."""
    routes = [route("short", paths=("/a",)), route("long", paths=("/a/b",))]
    assert [match(routes, path=path) for path in ("/a", "/a/b/c", "/b")] == ["short", "long", None]


def test_route_that_asks_for_more_comes_first():
    """A route with a method, a host and a path goes before one with a longer path alone."""
    routes = [route("path", paths=("/a/b",)), route("all", paths=("/a",), hosts=("h",), methods=("GET",))]
    assert match(routes, path="/a/b") == "all"
    assert match(routes, method="POST", path="/a/b") == "path"


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", False),
        ("Example.com:8000", "example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("example.*", "example.org", True),
        ("example.*", "example", False),
    ],
)
def test_host_matches_as_a_whole_or_by_its_wildcard(pattern, host, matches):
    """A host is compared without port and case; a wildcard stands for at least one character at one end."""
    assert (match([route("r", hosts=(pattern,))], host=host) == "r") is matches


def test_plain_host_comes_before_a_wildcard():
    """The exact host wins."""
    routes = [route("wild", hosts=("*.example.com",)), route("plain", hosts=("a.example.com",))]
    assert match(routes, host="a.example.com") == "plain"


@pytest.mark.parametrize(
    ("service", "strip_path", "path", "upstream_path"),
    [
        (ORDERS, True, "/api/v1/x", "/v1/x"),
        (ORDERS, True, "/api", "/"),
        (ORDERS, False, "/api/v1", "/api/v1"),
        (NAMED, True, "/api/v1", "/base/v1"),
        (NAMED, True, "/api", "/base"),
        (NAMED, False, "/api/v1", "/base/api/v1"),
    ],
)
def test_service_is_asked_for_its_own_path_and_the_rest(service, strip_path, path, upstream_path):
    """The route's prefix is taken away when it is to be stripped; the service's path comes first."""
    routes = (Route(name="r", service=service.name, paths=("/api",), strip_path=strip_path),)
    found = Router(routes, (service,)).match("GET", "h", path)
    assert found.upstream_path(path) == upstream_path


def test_address_is_known_where_the_host_is_one():
    """A service with an address needs no resolver."""
    routes = (route("a", paths=("/a",)), Route(name="n", service="named", paths=("/n",)))
    router = Router(routes, (ORDERS, NAMED))
    assert router.match("GET", "h", "/a").address == ("127.0.0.1", 8080)
    assert router.match("GET", "h", "/n").address is None


def test_findings_are_bounded():
    """However many paths are asked for, a bounded number is remembered, and all are answered."""
    router = Router((route("r", paths=("/",)),), (ORDERS,))
    for number in range(2 * FINDINGS_MAX + 1):
        assert router.match("GET", "h", f"/{number}").route.name == "r"
    assert len(router._found) <= FINDINGS_MAX
