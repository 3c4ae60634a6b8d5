"""What a span costs through OpenTelemetry's API: on Kong's pools (`kongtrace.otel`), against opentelemetry-sdk.

The same program runs with either provider: a request of 8 spans, a root of kind server with 6 attributes and the status
code, and 7 children with one attribute each; made current, or started below an explicit context. With the sdk no
processor takes the spans; on Kong's pools the request runs in a worker's access phase, and gives its spans back at its
end. Rounds as in `bench_span`. Run alone: `python -m tests.bench.bench_otel`.
"""

from ssl import RAND_bytes
from time import time_ns
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider

from kongtrace import PHASES, GlobalTracer, TracerProvider, otel
from tests.bench.bench_span import SDK, current, explicit, faster

ACCESS = PHASES["access"]


class Pooled:
    """A worker whose requests trace through OpenTelemetry's API."""

    def __init__(self) -> None:
        handle = GlobalTracer()
        self.provider = TracerProvider(time_ns=time_ns, random_bytes=RAND_bytes)
        handle.use(self.provider)
        self.provider.set_global_tracer(self.provider.new("instrument"))
        self.tracer = otel.TracerProvider(handle=handle).get_tracer("bench")

    def request(self, work: Any) -> None:
        ctx: dict[str, Any] = {}
        self.provider.execution.enter(ACCESS, ctx)
        work(self.tracer)
        self.provider.end_request(ctx)


def ratios() -> list[dict[str, Any]]:
    """Both ways to start a child."""
    ours, sdk = Pooled(), SdkTracerProvider(resource=Resource({})).get_tracer("bench")
    return [
        faster(
            f"span through opentelemetry-api, {how}", lambda w=work: ours.request(w), SDK, lambda w=work: w(sdk), ">= 6"
        )
        for how, work in (("made current", current), ("explicit context", explicit))
    ]


if __name__ == "__main__":
    for figures in ratios():
        print("{name}, against {against}: {ratio} ({low} to {high}), goal {goal}".format(**figures))
