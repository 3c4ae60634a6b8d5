"""The router against a model that tries every route."""

import re
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.entity import Route, Service
from sim.router import Router, normalized

SERVICE = Service(name="s", host="127.0.0.1")

HOSTS = ["a.b", "a.b:80", "a.b:81", "*.b", "*.b:81", "a.*", "b.b"]
PREFIXES = ["/", "/a", "/a/b", "/ab", "/b"]
REGEXES = ["~/a", "~/a/(?<x>[ab]+)", "~/[ab]", "~/.*b", "~/a1?/", "~/ab*/a", "~/b|/a/", "~/ab{1}$"]


def some(values, *, least=0):
    """A list of a few of the values; often an empty one."""
    return st.lists(st.sampled_from(values), min_size=least, max_size=2, unique=True)


@st.composite
def routes(draw):
    """Routes over a small vocabulary, so that several match one request."""
    made = []
    for number in range(draw(st.integers(2, 8))):
        criteria = {
            "hosts": draw(some(HOSTS)),
            "paths": draw(st.one_of(some(PREFIXES), some(PREFIXES), some(REGEXES), some([*PREFIXES, *REGEXES]))),
            "methods": draw(some(["GET", "PUT"])),
            "headers": draw(st.sampled_from([{}, {}, {"x": ["1"]}, {"y": ["1"]}, {"x": ["1", "2"], "y": ["1"]}])),
        }
        if any(criteria.values()):
            more = {"regex_priority": draw(st.integers(0, 1)), "created_at": draw(st.sampled_from([None, 1, 2]))}
            made.append(Route.model_validate({"name": f"r{number}", "service": "s"} | criteria | more))
    return tuple(made)


@st.composite
def requests(draw):
    """A request over the same vocabulary."""
    authority = draw(st.sampled_from(["a.b", "a.b:80", "a.b:81", "b.b", "a.a"]))
    paths = ["/a/b", "/a/b/", "/ab/a", "/%61/../a", "/a", "/b/b", "/a1/b", "//ab", "/aa/a", "/"]
    path = draw(st.sampled_from(paths))
    lines = [(b"x", b"1"), (b"Y", b"1")][: draw(st.integers(0, 2))]
    return SimpleNamespace(
        method=draw(st.sampled_from(["GET", "GET", "PUT"])),
        host=authority.partition(":")[0],
        authority=authority.encode(),
        path=path,
        raw_path=path.encode(),
        lines=lines,
        forwarded_lines=lambda: lines,
    )


class Model:
    """Every route with every path, ranked by a chain of comparisons and tried one by one."""

    def __init__(self, all_routes):
        entries = [(route, path) for route in all_routes for path in (route.paths or [None])]
        for key in reversed(
            [
                lambda e: self.kinds(e).count(True),
                self.kinds,
                lambda e: any("*" in host and host[-1].isdigit() for host in e[0].hosts),
                lambda e: bool(e[0].hosts) and "*" not in "".join(e[0].hosts),
                self.is_regex,
                lambda e: len(e[0].headers),
                lambda e: e[0].regex_priority if self.is_regex(e) else 0,
                lambda e: 0 if self.is_regex(e) else len(e[1] or ""),
                lambda e: -(e[0].created_at or 9),
            ]
        ):
            entries.sort(key=key, reverse=True)
        self.entries = entries

    @staticmethod
    def kinds(entry):
        route, path = entry
        return [bool(route.hosts), bool(route.headers), path is not None, bool(route.methods)]

    @staticmethod
    def is_regex(entry):
        return (entry[1] or "").startswith("~")

    def match(self, request):
        return next((route.name for route, path in self.entries if self.is_match(route, path, request)), None)

    def is_match(self, route, path, request):
        authority = request.authority.decode()
        full = authority if ":" in authority else f"{authority}:80"
        return (
            (not route.methods or request.method in route.methods)
            and (not route.hosts or any(self.is_host(pattern, full) for pattern in route.hosts))
            and all(
                any(name == n.decode().lower() and v.decode() in values for n, v in request.lines)
                for name, values in route.headers.items()
            )
            and (path is None or self.is_path(path, normalized(request.path)))
        )

    @staticmethod
    def is_host(pattern, full):
        if ":" not in pattern:
            full = full.partition(":")[0]
        return re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), full) is not None

    @staticmethod
    def is_path(path, asked):
        if path.startswith("~"):
            return re.match(path[1:].replace("(?<", "(?P<"), asked) is not None
        return asked.startswith(path)


@settings(max_examples=4 * settings.default.max_examples)
@given(routes(), st.lists(requests(), min_size=3, max_size=6))
def test_router_agrees_with_a_model_that_tries_every_route(all_routes, asked):
    """Whatever the index and the memory do, the route is the first by rank of those that match."""
    router, model = Router(all_routes, (SERVICE,)), Model(all_routes)
    for request in [*asked, *asked]:
        found = router.match(request)
        assert (found.route.name if found else None) == model.match(request)
