"""The gateway's own spans: where tasks wait at once, what has ended leaves its place to what is open."""

import asyncio

import pytest

from kongtrace import KONG, SAFE
from kongtrace.span import STATUS_ERROR
from kongtrace.testing import TracedWorker
from sim.config import Tracing
from sim.instrumentation import Instrumentation
from sim.ngx import Network, resolve
from sim.verify.bench import Bench


class Resolver:
    """Resolves each name when it is told to; a name that is told an error fails."""

    def __init__(self):
        self.found = {}

    async def resolve(self, host, port):
        found = self.found[host] = asyncio.get_running_loop().create_future()
        return await found, port


@pytest.mark.parametrize("answer", ["127.0.0.1", OSError("no such name")])
@pytest.mark.parametrize(("profile", "left"), [(KONG, "kong.dns"), (SAFE, "kong.access.plugin.offers")])
def test_names_that_tasks_resolve_at_once_leave_the_handlers_span_active_in_profile_safe(profile, left, answer):
    """In Kong the first name's span, which has ended, is active once the second's has ended."""  # S9, T10, I9
    worker = TracedWorker(profile)
    instrumentation = Instrumentation(worker.provider, Tracing(instrumentations=("all",), sampling_rate=1.0))
    tracer = worker.provider.global_tracer

    async def play():
        resolver = Resolver()
        network = Network(resolver, None, instrumentation)
        waiting = [asyncio.ensure_future(resolve(network, host, 80)) for host in ("first", "second")]
        while len(resolver.found) < 2:
            await asyncio.sleep(0)
        for found in resolver.found.values():
            found.set_exception(answer) if isinstance(answer, OSError) else found.set_result(answer)
        await asyncio.wait(waiting)
        assert [task.exception() is not None for task in waiting] == [isinstance(answer, OSError)] * 2

    ctx = worker.begin()
    handler = instrumentation.plugin_access("kong.access.plugin.offers")
    asyncio.run(play())
    assert tracer.active_span().name == left
    handler.finish()
    tracer.set_active_span(None)
    worker.end(ctx)
    worker.check()


@pytest.mark.parametrize("profile", [KONG, SAFE])
def test_span_of_a_look_up_that_is_given_up_ends_and_leaves_the_handlers_span_active(profile):
    """A socket's time to connect may run out before the name is resolved; what follows is no child of the look-up."""
    worker = TracedWorker(profile)
    instrumentation = Instrumentation(worker.provider, Tracing(instrumentations=("all",), sampling_rate=1.0))
    tracer = worker.provider.global_tracer

    async def play():
        waiting = asyncio.ensure_future(resolve(Network(Resolver(), None, instrumentation), "slow.test", 80))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    ctx = worker.begin()
    handler = instrumentation.plugin_access("kong.access.plugin.offers")
    asyncio.run(play())
    assert tracer.active_span() is handler
    asked = tracer.get_spans()[1]
    assert (asked.name, asked.status) == ("kong.dns", STATUS_ERROR)
    assert [event.attributes for event in asked.events] == [{"exception.message": "aborted"}]
    handler.finish()
    tracer.set_active_span(None)
    worker.end(ctx)
    worker.check()


LEAKY = """
class Leaky:
    PRIORITY = 1000
    VERSION = "1"

    def access(self, kong, conf):
        kong.tracing.set_active_span(kong.tracing.start_span("leaky"))
        if kong.request.get_query_arg("exit"):
            kong.response.exit(403)
"""


@pytest.mark.parametrize(
    ("path", "upstream", "instrumentations", "unfinished"),
    [
        ("/", "answers", "all", "leaky"),
        ("/", "fails", "all", "leaky"),
        ("/?exit=1", "answers", "all", "kong"),
        ("/", "refuses", "all", "kong"),
        ("/", "answers", "request", "kong"),
    ],
)
def test_a_span_that_was_left_active_ends_in_place_of_the_root_or_never(
    tmp_path, path, upstream, instrumentations, unfinished
):
    """The span of a good last try makes the root active again before the gateway ends the active span."""  # I13, KT006
    (tmp_path / "leaky.py").write_text(LEAKY, encoding="utf-8")
    bench = Bench()
    bench.use(str(tmp_path / "leaky.py"))
    bench.trace(instrumentations=instrumentations)
    bench.get(path, upstream=upstream)
    assert [span.name for span in bench.spans if not span.end_time_unix_nano] == [unfinished]
    assert {mistake.code for mistake in bench.finish()} == {"KT006"}
