"""A wrong and a right plugin for each mistake that an author can make; a comment marks the line that is found."""

import re

HANDLERS = r"(init_worker|configure|rewrite|access|response|header_filter|body_filter|log)"


def plugin(program):
    """Return the file of a plugin with the handlers that stand in a program as functions."""
    names = re.findall(rf"^(?:async )?def {HANDLERS}\(", program, re.MULTILINE)
    members = ["PRIORITY = 1000", 'VERSION = "1"', *(f"{name} = {name}" for name in names)]
    return "\n".join([program.strip(), "", "", "class Shop:", *(f"    {member}" for member in members), ""])


PAIRS = {
    "use after release": (
        """
def late(premature, span):
    span.set_attribute("rows", 3)  # KT001

def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
    kong.timer.at(1, late, span)
""",
        """
def late(premature, name):
    len(str(name))

def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.set_attribute("rows", 3)
    span.finish()
    kong.timer.at(1, late, span.name)
""",
    ),
    "use of another request's span": (
        """
seen = {}

async def access(self, kong, conf):
    span = seen.setdefault("span", kong.tracing.start_span("load order"))
    await kong.ngx.sleep(0.1)
    span.set_attribute("rows", 3)  # KT007
""",
        """
async def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    await kong.ngx.sleep(0.1)
    span.set_attribute("rows", 3)
    span.finish()
""",
    ),
    "double release": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
    span.release()
    span.release()  # KT002
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
""",
    ),
    "release by hand": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
    span.release()  # KT029
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
""",
    ),
    "release before finish": (
        """
def access(self, kong, conf):
    kong.tracing.start_span("load order").release()  # KT003
""",
        """
def access(self, kong, conf):
    kong.tracing.start_span("load order").finish()
""",
    ),
    "release of what others need": (
        """
def log(self, kong, conf):
    root = kong.tracing.get_root_span()
    if root is not None:
        root.release()  # KT004
""",
        """
def log(self, kong, conf):
    root = kong.tracing.get_root_span()
    if root is not None:
        kong.log.debug(root.name)
""",
    ),
    "double finish": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    try:
        if kong.request.get_method() == "DELETE":
            span.finish()
    finally:
        span.finish()  # KT015
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    try:
        kong.request.get_method()
    finally:
        span.finish()
""",
    ),
    "attribute set after finish": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
    span.set_attribute("rows", 3)  # KT016
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.set_attribute("rows", 3)
    span.finish()
""",
    ),
    "unfinished at request end": (
        """
def access(self, kong, conf):
    kong.ctx.plugin["span"] = kong.tracing.start_span("load order", parent=kong.tracing.get_root_span())  # KT005

def header_filter(self, kong, conf):
    kong.ctx.plugin["span"].finish() if "span" in kong.ctx.plugin else None
""",
        """
def access(self, kong, conf):
    kong.ctx.plugin["span"] = kong.tracing.start_span("load order", parent=kong.tracing.get_root_span())

def log(self, kong, conf):
    kong.ctx.plugin["span"].finish() if "span" in kong.ctx.plugin else None
""",
    ),
    "active span not restored": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    kong.tracing.set_active_span(span)  # KT006
    if kong.request.get_header("traceparent") is not None:
        return
    span.finish()
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    kong.tracing.set_active_span(span)
    try:
        kong.request.get_header("traceparent")
    finally:
        span.finish()
""",
    ),
    "no active span left": (
        """
def access(self, kong, conf):
    kong.tracing.set_active_span(None)  # KT006
    kong.tracing.start_span("apart").finish()
""",
        """
def access(self, kong, conf):
    active = kong.tracing.active_span()
    kong.tracing.set_active_span(None)
    kong.tracing.start_span("apart").finish()
    kong.tracing.set_active_span(active)
""",
    ),
    "caller-owned attribute table reused": (
        """
LABELS = {"team": "orders"}

def access(self, kong, conf):
    kong.tracing.start_span("load order", attributes=LABELS).finish()  # KT008
""",
        """
LABELS = {"team": "orders"}

def access(self, kong, conf):
    kong.tracing.start_span("load order", attributes=dict(LABELS)).finish()
""",
    ),
    "caller-owned attribute table mutated": (
        """
def access(self, kong, conf):
    labels = {"team": "orders"}
    span = kong.tracing.start_span("load order", attributes=labels)  # KT008
    labels["rows"] = 3
    span.finish()
""",
        """
def access(self, kong, conf):
    labels = {"team": "orders"}
    span = kong.tracing.start_span("load order", attributes=labels)
    span.set_attribute("rows", 3)
    span.finish()
""",
    ),
    "caller-owned attribute table mutated after finish": (
        """
def access(self, kong, conf):
    labels = {"team": "orders"}
    kong.tracing.start_span("load order", attributes=labels).finish()  # KT016
    labels["rows"] = 3
""",
        """
def access(self, kong, conf):
    labels = {"team": "orders"}
    kong.tracing.start_span("load order", attributes=labels).finish()
    labels = {"rows": 3}
""",
    ),
    "one attribute table on two spans": (
        """
def access(self, kong, conf):
    labels = {"team": "orders"}
    kong.tracing.start_span("load order", attributes=labels).finish()
    kong.tracing.start_span("load stock", attributes=labels).finish()  # KT009
""",
        """
def access(self, kong, conf):
    labels = {"team": "orders"}
    kong.tracing.start_span("load order", attributes=dict(labels)).finish()
    kong.tracing.start_span("load stock", attributes=dict(labels)).finish()
""",
    ),
    "process_span keeping a live span": (
        """
def log(self, kong, conf):
    batch = []
    kong.tracing.process_span(batch.append)  # KT012
    kong.timer.at(5, send, batch)

def send(premature, batch):
    len(batch)
""",
        """
def log(self, kong, conf):
    batch = []
    kong.tracing.process_span(lambda span: batch.append(span.name))
    kong.timer.at(5, send, batch)

def send(premature, batch):
    len(batch)
""",
    ),
    "wrong phase for a span": (
        """
def work(premature, kong):
    kong.tracing.start_span("load order")  # KT010

def log(self, kong, conf):
    kong.timer.at(0, work, kong)
""",
        """
def work(premature, kong):
    kong.log.debug("loaded")

def log(self, kong, conf):
    kong.tracing.start_span("load order").finish()
    kong.timer.at(0, work, kong)
""",
    ),
    "process_span in the wrong phase": (
        """
def access(self, kong, conf):
    kong.tracing.process_span(lambda span: None)  # KT011
""",
        """
def log(self, kong, conf):
    kong.tracing.process_span(lambda span: None)
""",
    ),
    "socket in a synchronous phase": (
        """
def log(self, kong, conf):
    kong.ngx.socket.tcp()  # KG001
""",
        """
async def send(premature, kong):
    sock = kong.ngx.socket.tcp()
    sock.settimeout(1000)
    connected, error = await sock.connect("127.0.0.1", 1)
    if connected:
        sock.close()

def log(self, kong, conf):
    kong.timer.at(0, send, kong)
""",
    ),
    "function of the gateway in the wrong phase": (
        """
def log(self, kong, conf):
    kong.service.request.set_header("x-late", "1")  # KG001
""",
        """
def access(self, kong, conf):
    kong.service.request.set_header("x-early", "1")
""",
    ),
    "await in a synchronous phase": (
        """
async def log(self, kong, conf):  # KG001
    await kong.ngx.sleep(1)
""",
        """
async def work(premature, kong):
    await kong.ngx.sleep(1)

def log(self, kong, conf):
    kong.timer.at(0, work, kong)
""",
    ),
    "coroutine that nobody awaits": (
        """
async def send(kong):
    await kong.ngx.sleep(1)

def log(self, kong, conf):  # KG001
    return send(kong)
""",
        """
async def send(premature, kong):
    await kong.ngx.sleep(1)

def log(self, kong, conf):
    kong.timer.at(0, send, kong)
""",
    ),
    "blocking call that stalls the loop": (
        """
import time

def access(self, kong, conf):
    if kong.request.get_method() == "DELETE":
        time.sleep(0.03)  # KG002
""",
        """
async def access(self, kong, conf):
    if kong.request.get_method() == "DELETE":
        await kong.ngx.sleep(0.03)
""",
    ),
    "blocking call before there are requests": (
        """
import time

def header_filter(self, kong, conf):
    time.sleep(0.03)  # KG002
""",
        """
import time

def init_worker(self, kong):
    time.sleep(0.03)

def configure(self, kong, configs):
    time.sleep(0.03)
""",
    ),
    "computation that stalls the loop": (
        """
import time

def access(self, kong, conf):
    if kong.request.get_method() == "DELETE":
        until_s = time.thread_time() + 0.1
        while time.thread_time() < until_s: pass  # KG002
""",
        """
def access(self, kong, conf):
    sum(i * i for i in range(20))
""",
    ),
    "timer storm": (
        """
def work(premature):
    pass

def access(self, kong, conf):
    for _ in range(50):
        kong.timer.at(0, work)  # KG003
""",
        """
def work(premature):
    pass

def access(self, kong, conf):
    kong.timer.at(0, work)
""",
    ),
    "timers that beget timers": (
        """
def access(self, kong, conf):
    def work(premature):
        kong.timer.at(0.001, work)  # KG003
    kong.timer.at(0, work)
""",
        """
def access(self, kong, conf):
    def work(premature):
        pass
    kong.timer.at(0, work)
""",
    ),
    "leaked timer": (
        """
def flush(premature):
    pass

def access(self, kong, conf):
    kong.timer.every(60, flush)  # KG004
""",
        """
def flush(premature):
    pass

def init_worker(self, kong):
    kong.timer.every(60, flush)
""",
    ),
    "timer that keeps a leaving worker": (
        """
async def flush(premature, kong):
    while True:
        await kong.ngx.sleep(10)

def init_worker(self, kong):
    kong.timer.at(0, flush, kong)  # KG004
""",
        """
async def flush(premature, kong):
    while not kong.ngx.worker.exiting():
        await kong.ngx.sleep(10)

def init_worker(self, kong):
    kong.timer.at(0, flush, kong)
""",
    ),
    "unbounded names": (
        """
def access(self, kong, conf):
    kong.tracing.start_span(f"load {kong.request.get_path_with_query()}").finish()  # KT018
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load", attributes={"path": kong.request.get_path_with_query()})
    span.finish()
""",
    ),
    "unbounded attribute names": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load")
    span.set_attribute(f"seen {kong.request.get_raw_query()}", True)  # KT031
    span.finish()
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load")
    span.set_attribute("seen", kong.request.get_raw_query())
    span.finish()
""",
    ),
    "attribute of any size": (
        """
def body_filter(self, kong, conf):
    span = kong.tracing.start_span("part")
    span.set_attribute("body", (kong.ngx.arg[1] or b"").decode("latin-1"))  # KT032
    span.finish()
""",
        """
def body_filter(self, kong, conf):
    span = kong.tracing.start_span("part")
    span.set_attribute("size", len(kong.ngx.arg[1] or b""))
    span.finish()
""",
    ),
    "attribute type that OTLP cannot carry": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load")
    span.set_attribute("methods", {kong.request.get_method()})  # KT017
    span.finish()
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load")
    span.set_attribute("methods", [kong.request.get_method()])
    span.finish()
""",
    ),
    "error without status": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load")
    if kong.request.get_method() == "PUT":
        span.record_error("no such order")  # KT024
    span.finish()
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load")
    if kong.request.get_method() == "PUT":
        span.record_error("no such order")
        span.set_status(2)
    span.finish()
""",
    ),
    "orphan parent in propagated headers": (
        """
def access(self, kong, conf):
    root = kong.tracing.get_root_span()
    if root is not None:
        parent = kong.ngx.random_bytes(8).hex()
        kong.service.request.set_header("traceparent", f"00-{root.trace_id.hex()}-{parent}-01")  # KG006
""",
        """
def access(self, kong, conf):
    root = kong.tracing.get_root_span()
    if root is not None:
        flags = "01" if root.should_sample else "00"
        kong.service.request.set_header("traceparent", f"00-{root.trace_id.hex()}-{root.span_id.hex()}-{flags}")
""",
    ),
    "span exported without end time": (
        """
def access(self, kong, conf):
    kong.ctx.plugin["span"] = kong.tracing.start_span("load order", parent=kong.tracing.get_root_span())

def log(self, kong, conf):
    kong.tracing.process_span(lambda span: span.name)
    if "span" in kong.ctx.plugin:
        kong.ctx.plugin["span"].finish()  # KT030
""",
        """
def access(self, kong, conf):
    kong.ctx.plugin["span"] = kong.tracing.start_span("load order", parent=kong.tracing.get_root_span())

def log(self, kong, conf):
    if "span" in kong.ctx.plugin:
        kong.ctx.plugin["span"].finish()
    kong.tracing.process_span(lambda span: span.name)
""",
    ),
    "copy that shares a span's tables": (
        """
from copy import copy

def send(premature, copies):
    len(copies)

def log(self, kong, conf):
    copies = []
    kong.tracing.process_span(lambda span: copies.append(copy(span)))  # KT013
    kong.timer.at(5, send, copies)
""",
        """
def send(premature, copies):
    len(copies)

def log(self, kong, conf):
    copies = []
    kong.tracing.process_span(lambda span: copies.append((span.name, dict(span.attributes or {}))))
    kong.timer.at(5, send, copies)
""",
    ),
    "time in the wrong unit": (
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish(kong.ngx.now())  # KT014
""",
        """
def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
""",
    ),
    "another decision within the trace": (
        """
def header_filter(self, kong, conf):
    ahead = kong.tracing.create_span(kong.tracing, {"span_kind": 3})  # KT019
    kong.tracing.set_should_sample(False)
    kong.tracing.link_span(kong.tracing, ahead, "call stock")
    ahead.finish()
""",
        """
def header_filter(self, kong, conf):
    kong.tracing.set_should_sample(False)
    ahead = kong.tracing.create_span(kong.tracing, {"span_kind": 3})
    kong.tracing.link_span(kong.tracing, ahead, "call stock")
    ahead.finish()
""",
    ),
    "flag of one span": (
        """
def header_filter(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.should_sample = False  # KT020
    span.finish()
""",
        """
def header_filter(self, kong, conf):
    span = kong.tracing.start_span("load order")
    kong.tracing.set_should_sample(False)
    span.finish()
""",
    ),
    "child beyond its parent": (
        """
async def access(self, kong, conf):
    parent = kong.tracing.start_span("load order")
    child = kong.tracing.start_span("ask stock", parent=parent)  # KT021
    parent.finish()
    await kong.ngx.sleep(0.1)
    child.finish()
""",
        """
async def access(self, kong, conf):
    parent = kong.tracing.start_span("load order")
    child = kong.tracing.start_span("ask stock", parent=parent)
    await kong.ngx.sleep(0.1)
    child.finish()
    parent.finish()
""",
    ),
    "namespace that nobody exports": (
        """
def init_worker(self, kong):
    self.tracer = kong.tracing.new("stock", {"namespace": "STOCK"})

def access(self, kong, conf):
    self.tracer.start_span("load order").finish()  # KT022
""",
        """
def init_worker(self, kong):
    self.tracer = kong.tracing.new("stock", {"namespace": "STOCK"})

def access(self, kong, conf):
    self.tracer.start_span("load order").finish()

def log(self, kong, conf):
    self.tracer.process_span(lambda span: span.name)
""",
    ),
    "tracer that nobody asks for": (
        """
def init_worker(self, kong):
    self.tracer = kong.tracing.new("stock")

def access(self, kong, conf):
    self.tracer.start_span("load order").finish()  # KT023
""",
        """
def init_worker(self, kong):
    self.tracer = kong.tracing.new("stock")

def access(self, kong, conf):
    self.tracer.start_span("load order").finish()

def log(self, kong, conf):
    self.tracer.process_span(lambda span: span.name)
""",
    ),
    "span held after its request": (
        """
seen = []

def access(self, kong, conf):
    span = kong.tracing.start_span("load order")  # KT025
    span.finish()
    seen.append(span)
""",
        """
seen = []

def access(self, kong, conf):
    span = kong.tracing.start_span("load order")
    span.finish()
    seen.append(span.span_id)
""",
    ),
    "span changed after its export": (
        """
def log(self, kong, conf):
    kong.tracing.process_span(lambda span: span.name)
    root = kong.tracing.get_root_span()
    if root is not None:
        root.set_attribute("cached", True)  # KT026
""",
        """
def header_filter(self, kong, conf):
    root = kong.tracing.get_root_span()
    if root is not None:
        root.set_attribute("cached", True)
""",
    ),
    "decision on a bare root": (
        """
def init_worker(self, kong):
    self.tracer = kong.tracing.new("stock")

def rewrite(self, kong, conf):
    self.tracer.start_span("load order").finish()
    self.tracer.get_sampling_decision()  # KT027

def log(self, kong, conf):
    self.tracer.process_span(lambda span: span.name)
""",
        """
def init_worker(self, kong):
    self.tracer = kong.tracing.new("stock")

def rewrite(self, kong, conf):
    self.tracer.start_span("load order", attributes={"team": "orders"}).finish()
    self.tracer.get_sampling_decision()

def log(self, kong, conf):
    self.tracer.process_span(lambda span: span.name)
""",
    ),
    "tracer made in every request": (
        """
def access(self, kong, conf):
    kong.tracing.new("instrument").start_span("load order").finish()  # KT028
""",
        """
def access(self, kong, conf):
    kong.tracing.start_span("load order").finish()
""",
    ),
    "handler that raises": (
        """
def log(self, kong, conf):
    kong.log.debug(kong.router.get_route().name)  # KG005
""",
        """
def log(self, kong, conf):
    route = kong.router.get_route()
    kong.log.debug(route.name if route is not None else "no route")
""",
    ),
    "handler that ends the process": (
        """
import sys

def access(self, kong, conf):
    sys.exit(0)  # KG005
""",
        """
def access(self, kong, conf):
    kong.response.exit(403)
""",
    ),
    "timer that ends the process": (
        """
import sys

async def work(premature, kong):
    await kong.ngx.sleep(0.001)
    sys.exit(0)  # KG005

def access(self, kong, conf):
    kong.timer.at(0, work, kong)
""",
        """
async def work(premature, kong):
    await kong.ngx.sleep(0.001)

def access(self, kong, conf):
    kong.timer.at(0, work, kong)
""",
    ),
    "handler that finds nothing": (
        """
def access(self, kong, conf):
    next(iter(()))  # KG005
""",
        """
def access(self, kong, conf):
    next(iter(()), None)
""",
    ),
    "handler that finds nothing after a wait": (
        """
async def access(self, kong, conf):
    await kong.ngx.sleep(0.001)
    next(iter(()))  # KG005
""",
        """
async def access(self, kong, conf):
    await kong.ngx.sleep(0.001)
    next(iter(()), None)
""",
    ),
    "handler that cancels itself": (
        """
import asyncio

def access(self, kong, conf):
    raise asyncio.CancelledError  # KG005
""",
        """
def access(self, kong, conf):
    return
""",
    ),
    "input and output behind the gateway's back": (
        """
import asyncio

async def access(self, kong, conf):
    await asyncio.open_connection("127.0.0.1", 80)  # KG007
""",
        """
async def access(self, kong, conf):
    sock = kong.ngx.socket.tcp()
    sock.settimeout(1000)
    connected, error = await sock.connect("127.0.0.1", 1)
    if connected:
        sock.close()
""",
    ),
    "blocking socket": (
        """
import socket

def access(self, kong, conf):
    try:
        socket.create_connection(("127.0.0.1", 1), 0.1).close()  # KG007
    except OSError:
        kong.log.warn("no connection")
""",
        """
async def access(self, kong, conf):
    sock = kong.ngx.socket.tcp()
    sock.settimeout(100)
    connected, error = await sock.connect("127.0.0.1", 1)
    if not connected:
        kong.log.warn("no connection")
""",
    ),
    "process of its own": (
        """
import subprocess

def access(self, kong, conf):
    try:
        subprocess.run(["true"], check=True)  # KG007
    except OSError:
        kong.log.warn("no process")
""",
        """
import subprocess

def init_worker(self, kong):
    subprocess.run(["true"], check=True)
""",
    ),
    "thread of its own": (
        """
from threading import Thread

def access(self, kong, conf):
    Thread(target=kong.request.get_method).start()  # KG007
""",
        """
def work(premature, method):
    len(method)

def access(self, kong, conf):
    kong.timer.at(0, work, kong.request.get_method())
""",
    ),
    "task that nobody waits for": (
        """
import asyncio

async def send(kong):
    await kong.ngx.sleep(1)

def log(self, kong, conf):
    asyncio.get_running_loop().create_task(send(kong))  # KG007
""",
        """
import asyncio

async def send(kong):
    span = kong.tracing.start_span("send")
    await kong.ngx.sleep(0.01)
    span.set_attribute("path", kong.request.get_path())
    span.finish()

async def access(self, kong, conf):
    await asyncio.gather(send(kong), send(kong))
    await asyncio.wait_for(send(kong), 1)
""",
    ),
    "handler that waits for ever": (
        """
import asyncio

async def access(self, kong, conf):  # KG008
    if kong.request.get_method() == "DELETE":
        await asyncio.Event().wait()
""",
        """
async def access(self, kong, conf):
    if kong.request.get_method() == "DELETE":
        await kong.ngx.sleep(1)
""",
    ),
    "handler that stops the event loop": (
        """
import asyncio

def access(self, kong, conf):
    if kong.request.get_method() == "DELETE":
        asyncio.get_running_loop().stop()  # KG009
""",
        """
def access(self, kong, conf):
    if kong.request.get_method() == "DELETE":
        kong.response.exit(405)
""",
    ),
    "handler that cancels its request": (
        """
import asyncio

async def access(self, kong, conf):
    asyncio.current_task().cancel()  # KG009
    await kong.ngx.sleep(0.001)
""",
        """
import asyncio

async def access(self, kong, conf):
    try:
        async with asyncio.timeout(0.001):
            await kong.ngx.sleep(1)
    except TimeoutError:
        kong.log.warn("too slow")
""",
    ),
    "handler that cancels what is not its own": (
        """
import asyncio

def log(self, kong, conf):
    for task in asyncio.all_tasks():
        task.cancel()  # KG009
""",
        """
import asyncio

async def fail(kong):
    raise ValueError

async def access(self, kong, conf):
    slow = asyncio.create_task(kong.ngx.sleep(1))
    slow.cancel()
    await asyncio.wait([slow])
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(kong.ngx.sleep(1))
            group.create_task(fail(kong))
    except* ValueError:
        kong.log.warn("no data")
""",
    ),
    "handler that lets a cancelled task end it": (
        """
import asyncio

async def access(self, kong, conf):
    slow = asyncio.create_task(kong.ngx.sleep(1))
    slow.cancel()
    await slow  # KG005
""",
        """
import asyncio
from contextlib import suppress

async def access(self, kong, conf):
    slow = asyncio.create_task(kong.ngx.sleep(1))
    slow.cancel()
    with suppress(asyncio.CancelledError):
        await slow
""",
    ),
    "handler that interrupts the process": (
        """
async def access(self, kong, conf):
    await kong.ngx.sleep(0.001)
    raise KeyboardInterrupt  # KG005
""",
        """
async def access(self, kong, conf):
    await kong.ngx.sleep(0.001)
    kong.response.exit(503)
""",
    ),
    "task that ends the process": (
        """
import asyncio
import sys

async def check(kong):
    sys.exit(1)  # KG005

async def access(self, kong, conf):
    await asyncio.gather(check(kong))
""",
        """
import asyncio

async def check(kong):
    return

async def access(self, kong, conf):
    await asyncio.gather(check(kong))
""",
    ),
    "task that blocks": (
        """
import asyncio
import time

async def look_up():
    time.sleep(0.02)  # KG002

async def access(self, kong, conf):
    await asyncio.gather(look_up(), look_up())
""",
        """
import asyncio

async def access(self, kong, conf):
    await asyncio.gather(kong.ngx.sleep(0.02), kong.ngx.sleep(0.02))
""",
    ),
    "handler that forgets to wait": (
        """
def access(self, kong, conf):  # KG001
    return kong.ngx.sleep(0.001)
""",
        """
async def access(self, kong, conf):
    return await kong.ngx.sleep(0.001)
""",
    ),
    "signal to a process": (
        """
import os
import signal

def access(self, kong, conf):
    try:
        os.kill(os.getpid(), signal.SIGTERM)  # KG007
    except OSError:
        kong.log.warn("no signal")
""",
        """
import os

def access(self, kong, conf):
    kong.log.debug(os.getpid())
""",
    ),
    "connection whose failure is expected": (
        """
import asyncio

async def access(self, kong, conf):
    try:
        await asyncio.open_connection("127.0.0.1", 80)  # KG007
    except Exception:
        kong.log.warn("no connection")
""",
        """
async def access(self, kong, conf):
    sock = kong.ngx.socket.tcp()
    sock.settimeout(100)
    if (await sock.connect("127.0.0.1", 1))[0] is None:
        kong.log.warn("no connection")
""",
    ),
    "client of a library that makes tasks": (
        """
import asyncio

import httpx

CLIENT = httpx.AsyncClient(verify=False)

async def access(self, kong, conf):
    try:
        await asyncio.gather(CLIENT.get("http://127.0.0.1:1/"))  # KG007
    except httpx.HTTPError:
        kong.log.warn("no answer")
""",
        """
async def access(self, kong, conf):
    answer, error = await kong.ngx.http.new().request_uri("http://127.0.0.1:1/")
    if answer is None:
        kong.log.warn(error)
""",
    ),
}
