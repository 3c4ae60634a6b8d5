"""The synthetic plugin: a plugin of known cost, the building block of load scenarios.

In each phase that is configured it makes spans with attributes and events, uses CPU time and waits, as much as it is
told. CPU time is that of the process, so it is the same on a busy machine; times and waits are the worker's runtime's.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from sim import __version__
from sim.document import Model
from sim.pdk import Kong
from sim.units import Bytes, Seconds


class Spans(Model):
    """Spans that a phase makes.

    Attributes:
        count: how many.
        name: of each; `{n}` in it stands for its number, from 1.
        attributes: how many each has.
        attribute_size: bytes of each attribute's value.
        events: how many each has.
        nesting: `flat`, each below what was active before; `deep`, each below the one before.
        tracer: that makes them; the global one when left out.
    """

    count: Annotated[int, Field(ge=0, le=100_000)] = 1
    name: Annotated[str, Field(min_length=1)] = "synthetic"
    attributes: Annotated[int, Field(ge=0, le=1_000)] = 0
    attribute_size: Bytes = 16
    events: Annotated[int, Field(ge=0, le=1_000)] = 0
    nesting: Literal["flat", "deep"] = "flat"
    tracer: str | None = None


class Work(Model):
    """What is done in one phase.

    Attributes:
        spans: that are made, in this order: all are started, then CPU time is used, then it waits, then all are ended.
        cpu: CPU time, s.
    """

    spans: Spans = Spans(count=0)
    cpu: Annotated[Seconds, Field(ge=0, le=60)] = 0.0


class WaitingWork(Work):
    """The same in a phase that may wait.

    Attributes:
        wait: time, s.
        db_queries: queries of the worker's database.
        http: a URL that is asked.
    """

    wait: Annotated[Seconds, Field(ge=0, le=3_600)] = 0.0
    db_queries: Annotated[int, Field(ge=0, le=1_000)] = 0
    http: str | None = None


class SyntheticConfig(Model):
    """Configuration of the plugin: what it does in each phase; nothing where it says nothing."""

    rewrite: WaitingWork | None = None
    access: WaitingWork | None = None
    header_filter: Work | None = None
    body_filter: Work | None = None
    log: Work | None = None


class Synthetic:
    """The plugin."""

    NAME: ClassVar[str] = "synthetic"
    PRIORITY: ClassVar[int] = 1000
    VERSION: ClassVar[str] = __version__
    Config = SyntheticConfig

    async def rewrite(self, kong: Kong, conf: SyntheticConfig) -> None:
        """Work."""
        await _wait(kong, conf.rewrite)

    async def access(self, kong: Kong, conf: SyntheticConfig) -> None:
        """Work."""
        await _wait(kong, conf.access)

    def header_filter(self, kong: Kong, conf: SyntheticConfig) -> None:
        """Work."""
        _work(kong, conf.header_filter)

    def body_filter(self, kong: Kong, conf: SyntheticConfig) -> None:
        """Work."""
        _work(kong, conf.body_filter)

    def log(self, kong: Kong, conf: SyntheticConfig) -> None:
        """Work."""
        _work(kong, conf.log)


async def _wait(kong: Kong, work: WaitingWork | None) -> None:
    if work is None:
        return
    finish = _start(kong, work.spans)
    if work.cpu:
        kong.ngx.spend_cpu(work.cpu)
    for _ in range(work.db_queries):
        await kong.db.query("SELECT 1")
    if work.http is not None:
        _answer, error = await kong.ngx.http.new().request_uri(work.http)
        if error is not None:
            kong.log.err(f"{work.http}: {error}")
    if work.wait:
        await kong.ngx.sleep(work.wait)
    finish()


def _work(kong: Kong, work: Work | None) -> None:
    if work is None:
        return
    finish = _start(kong, work.spans)
    if work.cpu:
        kong.ngx.spend_cpu(work.cpu)
    finish()


_EVENT: Final = {"synthetic.event": True}


def _start(kong: Kong, spans: Spans) -> Callable[[], None]:
    """Start the spans; return what ends them, the last one first, so that the active span is what it was."""
    if not spans.count:
        return _nothing
    tracer: Any = kong.tracing if spans.tracer is None else kong.tracing(spans.tracer)
    value = "x" * spans.attribute_size
    deep = spans.nesting == "deep"
    started = []
    for number in range(1, spans.count + 1):
        span = tracer.start_span(spans.name.replace("{n}", str(number)))
        for key in range(spans.attributes):
            span.set_attribute(f"synthetic.{key}", value)
        for _ in range(spans.events):
            span.add_event("synthetic", dict(_EVENT))
        if deep:
            tracer.set_active_span(span)
        started.append(span)

    def finish() -> None:
        for span in reversed(started):
            span.finish()

    return finish


def _nothing() -> None:
    pass
