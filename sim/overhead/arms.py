"""Arms: the gateways that are measured side by side, and how they are written.

    off                     no instrumentation, no opentelemetry plugin
    noop                    the instrumentations call a tracer that does nothing
    0.1                     the scenario's instrumentations at this sampling rate, exported
    0.1-export              the same, and nothing is exported
    0.1+checked             the same with the checked span
    0.1+slow.py             the same with the plugin in this file besides
    b.yaml                  the gateway of another scenario, as it stands there
    0.1@v1.2                any of them as the code was at this revision

An arm of the break-down leaves out a part of what tracing does, and all parts after it (`PARTS`).
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, Self

from pydantic import ValidationError

from kongtrace import NoopTracer, Span, Tracer, TracerProvider, checked
from kongtrace.context import Context
from kongtrace.otlp import encode_traces
from kongtrace.queue import ACCEPTED, Queues, Result
from kongtrace.queue_parameters import Binding
from kongtrace.queue_profile import Outcome
from sim.config import Gateway
from sim.document import explain, written
from sim.entity import Plugin
from sim.errors import UserError
from sim.exporter import Endpoint, Exporter
from sim.plugin import PluginClass, configuration, load
from sim.plugins import BUNDLED

PARTS: Final = ("create", "attributes", "finish", "copy", "enqueue", "encode", "send")
"""What tracing does to a span, in the order of its life."""

COALESCING_S_MAX: Final = 0.1
"""How long a batch that does not fill waits in a measurement, so that a block's export belongs to the block."""

_ARM: Final = re.compile(
    r"(?P<base>off|noop|\d+(?:\.\d+)?|[^+@]+\.ya?ml)(?P<export>-export)?(?P<more>(?:\+[^+@]+)*)(?:@(?P<revision>[^+@]+))?"
)
OPENTELEMETRY: Final = "opentelemetry"
_CHECKED: Final = "checked"


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm.

    Attributes:
        name: as it is written.
        base: "off", "noop", a rate, or the path of a scenario.
        exports: what is sampled is exported.
        is_checked: its spans are checked ones.
        plugins: files of plugins besides.
        revision: of the code; None: the code that runs.
        until: the last part that is done, of a break-down; None: all.
    """

    name: str
    base: str
    exports: bool = True
    is_checked: bool = False
    plugins: tuple[str, ...] = ()
    revision: str | None = None
    until: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an arm; raises UserError."""
        match = _ARM.fullmatch(text.strip())
        if match is None:
            raise UserError(
                f"expected an arm, not {text!r}",
                field="--arms",
                cure="write off, noop, a sampling rate such as 0.1, or a scenario.yaml; then -export, +checked, "
                "+plugin.py, @revision",
            )
        more = [word for word in match["more"].split("+") if word]
        arm = cls(
            name=text.strip(),
            base=match["base"],
            exports=match["export"] is None,
            is_checked=_CHECKED in more,
            plugins=tuple(word for word in more if word != _CHECKED),
            revision=match["revision"],
        )
        if arm.rate is not None and arm.rate > 1:
            raise UserError(f"a sampling rate is 0 to 1, not {arm.base}", field="--arms", cure="write 0.1 for 10 %")
        for file in (*((arm.base,) if arm.is_file else ()), *arm.plugins):
            if not Path(file).is_file():
                raise UserError(f"there is no file {file}", field="--arms", cure="name the file as seen from here")
        return arm

    def part(self, until: str | None) -> "Arm":
        """Return the arm that does no more than the parts up to `until`; None stands for the no-op tracer."""
        if until is None:
            return replace(self, name=f"{self.name} without spans", base="noop", exports=False)
        return replace(self, name=f"{self.name} until {until}", until=until)

    @property
    def rate(self) -> float | None:
        """The sampling rate that it names."""
        return float(self.base) if self.base[0].isdigit() and not self.is_file else None

    @property
    def is_file(self) -> bool:
        """Whether it is the gateway of another scenario."""
        return self.base.endswith((".yaml", ".yml"))

    def gateway(self, gateway: Gateway, traces_endpoint: str) -> Gateway:
        """Return what the arm is configured with, given that of the scenario, or of its own file; raises UserError."""
        if classes := self._classes(gateway):
            added = (*gateway.plugins, *(Plugin(name=name) for name in classes))
            update = {"plugins": added, "plugin_classes": gateway.plugin_classes | classes}
            gateway = gateway.model_copy(update=update)
        others = tuple(plugin for plugin in gateway.plugins if plugin.name != OPENTELEMETRY)
        words = gateway.tracing.instrumentations
        if self.base == "off":
            tracing = gateway.tracing.model_copy(update={"instrumentations": ("off",)})
            return gateway.model_copy(update={"tracing": tracing, "plugins": others})
        if words[0] == "off" and not self.is_file:
            words = ("all",)
        tracing = gateway.tracing.model_copy(update={"instrumentations": words})
        if self.base == "noop":
            return gateway.model_copy(update={"tracing": tracing, "plugins": others})
        if self.rate is not None:
            tracing = tracing.model_copy(update={"sampling_rate": self.rate})
        lacks_exporter = others == gateway.plugins and not self.is_file
        plugins = (*gateway.plugins, *([Plugin(name=OPENTELEMETRY)] if lacks_exporter else []))
        plugins = tuple(self._exporter(plugin) if plugin.name == OPENTELEMETRY else plugin for plugin in plugins)
        changed = gateway.model_copy(update={"tracing": tracing, "plugins": plugins})
        return changed.exporting_to(traces_endpoint)

    def require_runnable(self, gateway: Gateway) -> None:
        """Raise UserError where a plugin besides cannot be loaded, or not run without a configuration."""
        for name, plugin in self._classes(gateway).items():
            try:
                configuration(plugin, {})
            except ValidationError as error:
                message, _cure, below = explain(details := error.errors()[0])
                raise UserError(
                    f"{message}, and + gives a plugin no configuration",
                    file=inspect.getfile(plugin),
                    field=written((name, *details["loc"], *below)),
                    cure="configure it in a scenario of its own, and name that file as the arm",
                ) from None

    def _classes(self, gateway: Gateway) -> dict[str, PluginClass]:
        """Return the plugins besides, by name."""
        known = {**BUNDLED, **gateway.plugin_classes}
        return {name: plugin for name, plugin in load(self.plugins, known).items() if name not in known}

    def _exporter(self, plugin: Plugin) -> Plugin:
        config = dict(plugin.config)
        if self.rate is not None:
            config["sampling_rate"] = self.rate
        queue = dict(config.get("queue") or {})
        queue["max_coalescing_delay"] = min(COALESCING_S_MAX, queue.get("max_coalescing_delay", COALESCING_S_MAX))
        return plugin.model_copy(update={"config": config | {"queue": queue}})

    @property
    def make_provider(self) -> Callable[..., TracerProvider]:
        """What makes its tracer provider."""
        if self.is_checked:
            return partial(checked.tracer_provider, "report")
        if self.base == "noop":
            return _NoopProvider
        if not self.exports:
            return _BlindProvider
        return _PROVIDERS.get(self.until, TracerProvider)

    @property
    def make_exporter(self) -> Callable[..., Exporter]:
        """What makes the exporter of its worker."""
        return _EXPORTERS.get(self.until, Exporter)


# Arms that leave something out.


class _NoopProvider(TracerProvider):
    """Every tracer is the no-op one, so that calling it is all that is paid."""

    __slots__ = ()

    def new(self, name: Any = None, options: dict[str, Any] | None = None, **given: Any) -> NoopTracer:
        return self.noop_tracer


class _OpenSpan(Span):
    """Does not finish."""

    __slots__ = ()

    def finish(self, end_time_ns: Any = None) -> None:
        pass


class _BareSpan(_OpenSpan):
    """Does not finish, and takes no attribute."""

    __slots__ = ()

    def set_attribute(self, key: Any = None, value: Any = None) -> None:
        pass


class _BlindTracer(Tracer):
    """Shows its spans to nobody, so that nothing is copied."""

    __slots__ = ()

    def process_span(self, processor: Any = None, *extra: Any) -> None:
        pass


class _BlindProvider(TracerProvider):
    __slots__ = ()
    tracer_class = _BlindTracer


class _Dropping(Exporter):
    """Takes batches out of the queue, and drops them."""

    async def send(self, endpoint: Endpoint, entries: list[bytes]) -> Outcome:
        """Take a batch for sent."""
        return Outcome(ok=True)


class _Encoding(Exporter):
    """Encodes batches, and drops them."""

    async def send(self, endpoint: Endpoint, entries: list[bytes]) -> Outcome:
        """Encode a batch and take it for sent."""
        encode_traces(entries, endpoint.resource)
        return Outcome(ok=True)


class _Queueless(Exporter):
    """Has queues that take everything and keep nothing."""

    def __init__(self, *arguments: Any, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.queues.__class__ = _Sinks


class _Sinks(Queues):
    def queue(self, _name: str, _workspace: str = "") -> Any:
        return _Sink()


class _Sink:
    enqueued = rejected = 0

    def can_enqueue(self, _entry: object) -> bool:
        return True

    def enqueue(self, _entry: object, _binding: Binding, _now: float, log_phase: bool = False) -> Result:
        self.enqueued += 1
        return ACCEPTED

    def enqueue_many(
        self, entries: Sequence[object], _binding: Binding, _now: float, log_phase: bool = False
    ) -> list[str]:
        self.enqueued += len(entries)
        return []


class _BareProvider(_BlindProvider):
    __slots__ = ()
    span_class = _BareSpan


class _OpenProvider(_BlindProvider):
    __slots__ = ()
    span_class = _OpenSpan


class TimedProvider(_BlindProvider):
    """Takes the time of the release, which comes once a request and so can be timed by itself.

    Attributes:
        release_ns: spent in it so far.
    """

    __slots__ = ("release_ns",)

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.release_ns = 0

    def end_request(self, ctx: Context) -> None:
        """See `TracerProvider.end_request`."""
        begun_ns = perf_counter_ns()
        super().end_request(ctx)
        self.release_ns += perf_counter_ns() - begun_ns


_PROVIDERS: Final[dict[str | None, type[TracerProvider]]] = {
    "create": _BareProvider,
    "attributes": _OpenProvider,
    "finish": TimedProvider,
}
_EXPORTERS: Final[dict[str | None, type[Exporter]]] = {
    "copy": _Queueless,
    "enqueue": _Dropping,
    "encode": _Encoding,
}
