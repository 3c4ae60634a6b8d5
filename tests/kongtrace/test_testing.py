"""What is published for tests finds leaks, and is as the documentation shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given

from kongtrace import PROFILES, KongTraceError, Tracer, tracing
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


def test_an_exception_gives_the_request_up():
    """A request that an exception leaves is given up, and its unfinished spans are no leak."""
    worker = TracedWorker()

    def fail():
        worker.provider.new("plugin").start_span("open")
        raise LookupError

    with pytest.raises(LookupError), worker.request():
        fail()
    worker.check()


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
