"""What is published for tests finds leaks, and is as the documentation shows it."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given

from kongtrace import NOOP_SPAN, PROFILES, KongTraceError, ReleasedSpanError, Tracer, tracing
from kongtrace.testing import TracedWorker, attributes, serving, span_ids, span_trees, trace_ids

ROOT = Path(__file__).parents[2]
LEAKS = {
    "tracing.start_span('open')": "span 'open' was never finished",
    "tracing.set_active_span(tracing.start_span('kept'))": "span 'kept' was still active",
    "traced_worker.begin()": "1 request(s) were never ended",
}


def run_pytest(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text('pytest_plugins = ["kongtrace.testing"]\n')
    (folder / "test_user.py").write_text(test)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=ci",
        "test_user.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_documented_examples_run(tmp_path):
    """The examples of the documentation pass as they stand there."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/testing.md").read_text(), re.DOTALL)
    run = run_pytest(tmp_path, "\n".join(blocks[1:]))
    assert run.returncode == 0, run.stdout
    assert "3 passed" in run.stdout


@pytest.mark.parametrize(("leak", "report"), LEAKS.items())
def test_a_leak_fails_the_test(tmp_path, leak, report):
    """A test that passes but for a leak is reported, and the report names what leaked."""
    body = leak if "begin" in leak else f"with traced_worker.request():\n        {leak}"
    run = run_pytest(tmp_path, f"from kongtrace import tracing\n\ndef test_it(traced_worker):\n    {body}\n")
    assert run.returncode == 1
    assert "1 passed, 1 error" in run.stdout
    assert report in run.stdout


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_without_the_extra_the_error_names_it(missing):
    """Without pytest or hypothesis the import says which extra to install."""
    program = f"import sys; sys.modules[{missing!r}] = None; import kongtrace.testing"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "KongTraceError" in run.stderr
    assert "kongsim[testing]" in run.stderr


@given(tree=span_trees())
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_recorded_tree_is_exported_whole_and_leaks_nothing(profile, tree):
    """A tree that records itself is one trace of as many spans, and leaves nothing behind."""
    worker = TracedWorker(profile)
    with serving(worker.provider, tracing), worker.request():
        tree.record(tracing)
    worker.check()
    assert len(worker.exported) == len(tree)
    assert len({span["trace_id"] for span in worker.exported}) == 1


def test_tracers_made_at_import_serve_each_worker_in_turn():
    """A tracer that a module made before any worker works for each, and is inert between them."""
    with serving(TracedWorker().provider, tracing):
        pass  # whatever provider there was is gone
    tracer = tracing.new("plugin")
    assert isinstance(tracer, Tracer)
    for _ in range(2):
        worker = TracedWorker()
        with serving(worker.provider, tracing), worker.request():
            tracer.start_span("query").finish()
        assert [span["name"] for span in worker.exported] == ["query"]
        assert not tracer.start_span("query").is_recording


def leaks_of(worker):
    """What the worker would fail a test with, line by line."""
    try:
        worker.check()
    except AssertionError as error:
        return str(error).splitlines()
    return []


@pytest.fixture(params=PROFILES.values(), ids=PROFILES)
def worker(request):
    """A worker in each profile, which `tracing` serves."""
    worker = TracedWorker(request.param)
    with serving(worker.provider, tracing):
        yield worker


def test_a_request_whose_block_raises_ends_like_any_other(worker):
    """A handler that raises keeps no request from its log phase: what it leaves open is a leak, and all is exported."""

    def fail():
        tracing.start_span("done").finish()
        tracing.set_active_span(tracing.start_span("query"))
        raise LookupError

    with pytest.raises(LookupError), worker.request():
        fail()

    assert leaks_of(worker) == [
        "span 'query' was still active when its request ended",
        "span 'query' was never finished",
    ]
    assert [span["name"] for span in worker.exported] == ["done", "query"]


def test_a_handle_from_a_block_that_raised_is_a_released_one(worker):
    """Its methods refuse, and the balances bear them."""
    spans = []

    def fail():
        spans.append(tracing.start_span("query"))
        spans[0].finish()
        raise LookupError

    with pytest.raises(LookupError), worker.request():
        fail()
    with suppress(ReleasedSpanError):
        spans[0].release()

    assert leaks_of(worker) == []


def test_a_span_that_is_released_open_is_a_leak(worker):
    """Releasing ends nothing: the span is in no trace (S16). One that was never started has nothing to end."""
    with worker.request():
        tracing.start_span("query").release()
        tracing.create_span(None).release()
        span = tracing.start_span("done")
        span.finish()
        span.release()

    assert leaks_of(worker) == ["span 'query' was released before it was finished"]


def test_an_open_span_whose_list_is_replaced_is_a_leak(worker):
    """Unless it is finished before its request ends, even so (D17)."""
    with worker.request():
        tracing.start_span("query")
        finished_later = tracing.start_span("later")
        tracing.init_spans()
        with worker.request():
            tracing.init_spans()
        finished_later.finish()
        tracing.init_spans()
        tracing.start_span("listed").finish()

    assert leaks_of(worker) == ["span 'query' was never finished"]
    assert [span["name"] for span in worker.exported] == ["listed"]


@pytest.mark.parametrize("parent", [{"trace_id": bytes(16), "span_id": bytes(8)}, NOOP_SPAN], ids=["mapping", "noop"])
def test_what_cannot_be_finished_may_stay_active(worker, parent):
    """A parent from elsewhere, which is no span of this request, is no leak."""
    with worker.request():
        tracing.set_active_span(parent)
        tracing.start_span("query").finish()

    assert leaks_of(worker) == []
    assert [span["name"] for span in worker.exported] == ["query"]


def test_a_span_that_cannot_be_exported_is_logged(worker):
    """As in the gateway it costs neither the request nor the other spans anything."""
    endless = {}
    endless["endless"] = endless
    with worker.request():
        tracing.start_span("text", {"trace_id": "00" * 16}).finish()
        tracing.start_span("endless", attributes=endless).finish()
        tracing.start_span("query").finish()

    assert leaks_of(worker) == []
    assert [span["name"] for span in worker.exported] == ["query"]
    assert worker.logged == [
        ("error", "span 'text' cannot be exported: an id must be bytes, not str"),
        ("error", "span 'endless' cannot be exported: a value nested too deeply, or within itself"),
    ]


def test_a_request_within_another_lets_that_go_on(worker):
    """As a subrequest does; one that has ended meanwhile does not go on."""
    with worker.request("rewrite") as outer:
        with worker.request():
            tracing.start_span("inner").finish()
        assert (worker.provider.execution.phase.name, worker.provider.execution.ctx) == ("rewrite", outer)
        tracing.start_span("outer").finish()
    assert [span["name"] for span in worker.exported] == ["inner", "outer"]

    ended = worker.begin()
    with worker.request():
        worker.end(ended)
    assert not tracing.start_span("nobody's").is_recording
    assert leaks_of(worker) == []


def test_a_phase_that_nginx_does_not_have_is_refused():
    """The error lists the phases that there are, and no request has begun."""
    worker = TracedWorker()
    with pytest.raises(KongTraceError, match=r"'acess'.*access"):
        worker.begin("acess")
    worker.check()


@given(trace_id=trace_ids(), span_id=span_ids(), given_attributes=attributes())
def test_strategies_give_what_a_span_takes(trace_id, span_id, given_attributes):
    """Ids have their lengths and are not zero; attributes are exported, each of them."""
    worker = TracedWorker()
    with worker.request():
        options = {"trace_id": trace_id, "parent_id": span_id, "attributes": dict(given_attributes)}
        worker.provider.new("plugin").start_span("query", options).finish()
    worker.check()
    (span,) = worker.exported
    assert (span["trace_id"], span["parent_span_id"]) == (trace_id, span_id)
    assert len(span.get("attributes", ())) == len(given_attributes)
