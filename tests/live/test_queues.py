"""`kong.queue`: what a plugin puts into a queue of its own comes to its function, or into an account of the ledger."""

import asyncio
import copy
import json
import os
import sys
from contextlib import contextmanager
from signal import SIGKILL, SIGQUIT, SIGTERM
from typing import ClassVar

import pytest
from pydantic import BaseModel

from kongtrace import ApiError
from kongtrace.queue_parameters import QueueParameters
from sim.entity import Plugin
from sim.pdk import QueueConfig
from tests.gateway import echo, gateway_to, live, recording_collector


class OwnError(BaseException):
    """What no `except Exception` sees."""


class Queueing:
    """Puts a copy of each sampled span into a queue, whose batches it writes into the log."""

    PRIORITY: ClassVar = 1001
    VERSION: ClassVar = "1"

    class Config(BaseModel):
        """What comes of a batch, and of the queue."""

        outcomes: list[str] = ["sent"]
        queue: QueueConfig = QueueConfig(max_batch_size=100, max_coalescing_delay=0.2, initial_retry_delay=0.01)

    def __init__(self):
        self.attempts = 0

    def init_worker(self, kong):
        """Keep what the worker has one of."""
        self.kong = kong

    def log(self, kong, conf):
        """Copy."""
        kong.tracing.process_span(self.copy, kong, conf)

    def copy(self, span, kong, conf):
        """Copy one."""
        if span.should_sample:
            self.put(kong, conf, copy.deepcopy(span))

    def put(self, kong, conf, entry):
        """Enqueue."""
        queue_conf = kong.queue.get_plugin_params("queueing", conf)
        kong.log.notice("fits" if kong.queue.can_enqueue(queue_conf, entry) else "does not fit")
        ok, error = kong.queue.enqueue(queue_conf, self.send, conf, entry)
        if not ok:
            kong.log.err("not enqueued: ", error)

    async def send(self, conf, entries):
        """Do with a batch as it is configured, the last for good."""
        outcome = conf.outcomes[min(self.attempts, len(conf.outcomes) - 1)]
        self.attempts += 1
        names = sorted(getattr(entry, "name", entry) for entry in entries)
        await self.kong.ngx.sleep(0)
        self.kong.log.notice(f"{outcome} in {self.kong.ngx.get_phase()}: {json.dumps(names)}")
        match outcome:
            case "sent":
                return True
            case "raises":
                raise ValueError("no such thing")
            case "cancels":
                task = asyncio.ensure_future(self.kong.ngx.sleep(1))
                task.cancel()
                await task
            case "cancels itself":
                asyncio.current_task().cancel()
                await self.kong.ngx.sleep(1)
            case "goes its own way":
                raise OwnError
            case "exits":
                sys.exit("for good")
            case "takes them out":
                entries.clear()
            case "hangs":
                await self.kong.ngx.sleep(60)
        return None, f"it {outcome}"


@contextmanager
def queueing(directory, plugin=Queueing, config=None, *, plugins=(), collector=None, **options):
    """Run a gateway with a plugin that has a queue."""
    plugins = (Plugin(name="queueing", config=config or {}, instance_name="mine"), *plugins)
    with (
        echo() as upstream,
        live(
            directory, gateway_to(upstream, plugins=plugins, collector=collector, **options), {"queueing": plugin}
        ) as gateway,
    ):
        yield gateway


def books(gateway, signum=SIGQUIT):
    """The ledger of all workers, once they have left."""
    ledger = gateway.stop(signum).ledger
    assert ledger.unaccounted == 0
    return ledger


ALL = ["kong", "kong.balancer", "kong.dns", "kong.router"]
"""The spans of a request."""


def test_copies_of_spans_come_in_a_batch_and_stand_in_the_ledger(tmp_path):
    """A span that nobody else exports is enqueued and acknowledged as any other."""
    config = {"queue": {"max_batch_size": 2 * len(ALL), "max_coalescing_delay": 600}}
    with queueing(tmp_path, config=config) as gateway:
        gateway.request()
        gateway.request()
        gateway.wait_requests(2)
        ledger = books(gateway)
        log = gateway.log.read_text()

    assert f"sent in timer: {json.dumps(sorted(2 * ALL))}" in log
    assert "does not fit" not in log
    count = 2 * len(ALL)
    assert (ledger.created, ledger.enqueued, ledger.acknowledged) == (count, count, count)
    assert (ledger.unprocessed, ledger.copied_again, ledger.lost) == (0, 0, 0)


class QueueingByRequest(Queueing):
    """Has a queue for each request."""

    def put(self, kong, conf, entry):
        """Enqueue."""
        queue_conf = kong.queue.get_plugin_params("queueing", conf, kong.request.get_header("x-tenant"))
        kong.queue.enqueue(queue_conf, self.send, conf, entry)


def test_accounts_of_many_queues_outlive_their_queues(tmp_path):
    """A queue for each of many names, which is forgotten when it has no more work."""
    count = 100
    with queueing(tmp_path, QueueingByRequest, {"queue": {"max_batch_size": len(ALL)}}) as gateway:
        for number in range(count):
            gateway.request(headers={"X-Tenant": f"tenant {number}"})
        gateway.wait_requests(count)
        ledger = books(gateway)

    assert ledger.enqueued == ledger.acknowledged == count * len(ALL)


@pytest.mark.parametrize("priority", [1001, 1])
def test_what_another_exporter_has_seen_is_copied_again(tmp_path, priority):
    """Whichever of the two comes first."""
    plugin = type("Ordered", (Queueing,), {"PRIORITY": priority})
    with recording_collector() as collector, queueing(tmp_path, plugin, collector=collector.port) as gateway:
        gateway.request()
        gateway.wait_requests(1)
        ledger = books(gateway)

    assert ledger.created == ledger.copied_again >= len(ALL)
    assert ledger.enqueued == ledger.acknowledged == 2 * ledger.created
    assert ledger.unprocessed == 0


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        (["says no", "sent"], "it says no"),
        (["raises", "raises", "sent"], "ValueError: no such thing"),
        (["cancels", "sent"], "CancelledError()"),
        (["cancels itself", "sent"], "CancelledError()"),
        (["goes its own way", "sent"], "OwnError()"),
        (["exits", "sent"], "RuntimeError: SystemExit: for good"),
        (["takes them out", "sent"], "it takes them out"),
    ],
)
def test_batch_is_tried_again_until_it_is_sent(tmp_path, outcomes, reason):
    """Whatever the function does, with itself or with its list, is a failure of that attempt alone."""  # Q19, Q20
    with queueing(tmp_path, config={"outcomes": outcomes}) as gateway:
        gateway.request()
        gateway.wait_requests(1)
        ledger = books(gateway)
        log = gateway.log.read_text()

    tag = f"[queueing plugin {Plugin(name='queueing').id} (mine)] queue {Plugin(name='queueing').id}: "
    assert log.count(f"{tag}handler could not process entries: {reason}") == len(outcomes) - 1
    assert (ledger.acknowledged, ledger.lost) == (len(ALL), 0)


class QueueingPlainly(Queueing):
    """Has a plain function, which wants to end the program at first."""

    def send(self, _conf, _entries):
        """See there."""
        self.attempts += 1
        return True if self.attempts > 1 else sys.exit("for good")


def test_plain_function_that_exits_fails_too(tmp_path):
    """The worker goes on, and so does the batch."""
    with queueing(tmp_path, QueueingPlainly) as gateway:
        gateway.request()
        gateway.wait_logged("handler could not process entries: SystemExit('for good')")
        assert books(gateway).acknowledged == len(ALL)


@pytest.mark.parametrize(
    ("queue", "account"),
    [
        ({"max_retry_time": -1}, "dropped_retries"),
        ({"max_batch_size": 1, "max_entries": 1, "max_retry_time": -1}, "dropped_overflow"),
        ({"max_bytes": 100}, "rejected"),
    ],
)
def test_what_is_lost_stands_in_its_account(tmp_path, queue, account):
    """Given up, dropped for want of room, not taken: as with the exporter's queue."""
    config = {"outcomes": ["says no"], "queue": {"max_batch_size": 100, "max_coalescing_delay": 0.2} | queue}
    with queueing(tmp_path, config=config, profile="safe") as gateway:
        gateway.request()
        gateway.wait_requests(1)
        ledger = books(gateway)

    assert getattr(ledger, account) >= len(ALL) - 1
    assert ledger.lost == ledger.created == len(ALL)


@pytest.mark.parametrize("profile", ["kong", "safe"])
def test_worker_that_leaves_sends_what_waits_first(tmp_path, profile):
    """It does not wait for the coalescing delay."""  # Q17
    config = {"queue": {"max_batch_size": 100, "max_coalescing_delay": 600}}
    with queueing(tmp_path, config=config, profile=profile) as gateway:
        gateway.request()
        gateway.wait_until(lambda reading: reading.sum("queue_depth"))
        ledger = books(gateway)

    assert (ledger.acknowledged, ledger.lost) == (len(ALL), 0)


def test_worker_that_is_terminated_drops_what_waits(tmp_path):
    """And what its plugin is sending."""  # Q25
    with queueing(tmp_path, config={"outcomes": ["hangs"]}) as gateway:
        gateway.request()
        gateway.wait_until(lambda reading: reading.sum("in_flight"))
        ledger = books(gateway, SIGTERM)

    assert ledger.dropped_shutdown == ledger.created == len(ALL)


def test_worker_that_is_killed_loses_what_waits(tmp_path):
    """The master knows how much that was."""  # Q25
    with queueing(tmp_path, config={"outcomes": ["hangs"]}) as gateway:
        gateway.request()
        reading = gateway.wait_until(lambda reading: reading.sum("in_flight"))
        os.kill(reading.alive[0].pid, SIGKILL)
        gateway.wait_until(lambda reading: reading.ledger.lost_in_queue)
        ledger = books(gateway)

    assert ledger.lost_in_queue == ledger.created == len(ALL)


class Failing(Queueing):
    """Fails in the log phase once it has copied."""

    def log(self, kong, conf):
        """Copy, and fail."""
        super().log(kong, conf)
        raise ValueError


class Late(Queueing):
    """Copies spans when their request is over, one twice, and one while it is open."""

    def access(self, kong, conf):
        """Copy what is open."""
        self.put(kong, conf, copy.deepcopy(kong.tracing.active_span()))

    def log(self, kong, conf):
        """Let a timer enqueue copies."""
        self.copies = []
        kong.tracing.process_span(lambda span: self.copies.append(copy.deepcopy(span)))
        self.queue_conf = kong.queue.get_plugin_params("queueing", conf)
        kong.timer.at(0, self.enqueue, conf)

    def enqueue(self, _premature, conf):
        """Enqueue what was kept."""
        for entry in (*self.copies, self.copies[0]):
            self.kong.queue.enqueue(self.queue_conf, self.send, conf, entry)


@pytest.mark.parametrize(
    ("plugin", "copied_again", "unprocessed"), [(Failing, 0, 0), (Late, len(ALL) + 3, len(ALL) + 1)]
)
def test_books_balance_whenever_a_plugin_queues_its_copies(tmp_path, plugin, copied_again, unprocessed):
    """A copy beyond the log phase is of a span that has been booked."""
    with queueing(tmp_path, plugin) as gateway:
        gateway.request()
        gateway.wait_requests(1)
        ledger = books(gateway)

    assert (ledger.copied_again, ledger.unprocessed) == (copied_again, unprocessed)
    assert ledger.acknowledged == ledger.created + copied_again - unprocessed


class Texts(Queueing):
    """Puts lines of text into a queue, by a mapping and a plain function."""

    def log(self, kong, conf):
        """Enqueue, and enqueue wrongly."""
        queue_conf = dict(QueueConfig(max_batch_size=2), name="lines")
        for to, line in (("there", "one"), ("there", "two"), ("here", "three")):
            assert kong.queue.enqueue(queue_conf, self.tell, {"to": to}, line) == (True, None)
        nothing = None, "entry must be a non-nil Lua value"
        assert kong.queue.enqueue(queue_conf, self.tell, {"to": "here"}, None) == nothing
        for arguments in (
            (QueueConfig(), self.tell, None, "x"),
            ({"name": "lines"}, self.tell, None, "x"),
            (queue_conf, "tell", None, "x"),
            (queue_conf, self.tell, "here", "x"),
        ):
            with pytest.raises(ApiError) as raised:
                kong.queue.enqueue(*arguments)
            kong.log.notice(raised.value)
        made = kong.queue.get_plugin_params("queueing", {"queue": {"max_entries": 7}, "flush_timeout": 3}, "named")
        kong.log.notice(made == QueueParameters("named", made.log_tag, max_entries=7, max_coalescing_delay=3))

    def tell(self, conf, entries):
        """Write a batch into the log."""
        self.kong.log.notice(f"told {conf}: {entries}")
        return True, None


def test_entries_that_are_no_spans_are_in_no_account_of_spans(tmp_path):
    """They come all the same; what is wrong with a call is told in Kong's words."""  # Q11, Q12, Q27
    with queueing(tmp_path, Texts) as gateway:
        gateway.request()
        gateway.wait_requests(1)
        ledger = books(gateway)
        log = gateway.log.read_text()

    for line in (
        "told {'to': 'here'}: ['one', 'two']",
        "told {'to': 'here'}: ['three']",
        "arg #1 (queue_conf) must be a table",
        "arg #1 (queue_conf) max_batch_size must be a number",
        "arg #2 (handler) must be a function",
        "arg #3 (handler_conf) must be a table or nil",
        "please update your configuration to use queue.max_coalescing_delay instead",
        "[queueing] True",
    ):
        assert line in log
    assert (ledger.enqueued, ledger.unprocessed) == (0, len(ALL))
