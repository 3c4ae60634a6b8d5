"""A receiver of others' making takes what is exported: Arize Phoenix, where its command is installed.

It is no dependency: `pip install arize-phoenix` into any environment whose `bin` is in PATH lets this test run.
"""

import contextlib
import http.client
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from sim import process
from sim.entity import Plugin
from tests import peers
from tests.gateway import echo, gateway_to, live

PHOENIX = shutil.which("phoenix")
START_S = 120
REQUESTS = 5


@contextlib.contextmanager
def phoenix(folder):
    """Run Phoenix on free ports, with its database in a folder; give its port."""
    port, grpc_port = peers.free_port(), peers.free_port()
    settings = {"WORKING_DIR": str(folder), "HOST": "127.0.0.1", "PORT": str(port), "GRPC_PORT": str(grpc_port)}
    environment = os.environ | {f"PHOENIX_{name}": value for name, value in settings.items()}
    with (folder / "phoenix.log").open("wb") as log:
        running = subprocess.Popen([PHOENIX, "serve"], env=environment, stdout=log, stderr=log)
    try:
        descriptor = os.pidfd_open(running.pid)
        for _ in range(START_S * 10):
            assert not process.wait([descriptor], 0.1), (folder / "phoenix.log").read_text()
            if is_healthy(port):
                break
        yield port
    finally:
        running.terminate()
        running.wait(START_S)
        os.close(descriptor)


def is_healthy(port):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        client.request("GET", "/healthz")
        return client.getresponse().status == 200
    except OSError:
        return False
    finally:
        client.close()


def stored(folder):
    """Return (span id, parent id, name) of what Phoenix has stored."""
    with contextlib.closing(sqlite3.connect(f"file:{folder}/phoenix.db?mode=ro", uri=True)) as database:
        return database.execute("select span_id, parent_id, name from spans").fetchall()


@pytest.mark.skipif(PHOENIX is None, reason="Arize Phoenix is not installed")
@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_phoenix_stores_every_span(profile, tmp_path):
    """Each span that was acknowledged is in its database once, under its parent; in profile safe it came gzipped."""
    folder = Path(tmp_path) / "phoenix"
    folder.mkdir()
    with phoenix(folder) as port, echo() as upstream:
        config = {"traces_endpoint": f"http://127.0.0.1:{port}/v1/traces", "queue": {"max_coalescing_delay": 0.1}}
        gateway = gateway_to(upstream, plugins=(Plugin(name="opentelemetry", config=config),), profile=profile)
        with live(tmp_path, gateway) as running:
            for _ in range(REQUESTS):
                assert running.request().status == 200
            running.wait_requests(REQUESTS)
            books = running.stop().ledger
        for _ in range(START_S * 10):
            if len(spans := stored(folder)) >= books.acknowledged:
                break
            process.wait([], 0.1)
    ids = [span_id for span_id, _, _ in spans]
    assert books.acknowledged == books.created == len(spans) == len(set(ids))
    assert {parent_id for _, parent_id, _ in spans if parent_id is not None} <= set(ids)
    assert [name for _, parent_id, name in spans if parent_id is None] == ["kong"] * REQUESTS
