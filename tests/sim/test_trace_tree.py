"""A trace as a tree to print."""

import io
import textwrap

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from rich.console import Console

from sim.trace_tree import ATTRIBUTES_SHOWN_MAX, VALUE_SHOWN_MAX, render_trace

MS = 1_000_000
T0 = 1_700_000_000 * 1000 * MS


def _span(name, parent="", *, begin_ms=0.0, end_ms=10.0, kind=Span.SPAN_KIND_INTERNAL, **fields):
    return Span(
        trace_id=bytes(15) + b"\x07",
        span_id=name.encode()[:8].ljust(8),
        parent_span_id=parent.encode()[:8].ljust(8) if parent else b"",
        name=name,
        kind=kind,
        start_time_unix_nano=T0 + round(begin_ms * MS),
        end_time_unix_nano=end_ms and T0 + round(end_ms * MS),
        **fields,
    )


def _attributes(**values):
    return [KeyValue(key=key, value=AnyValue(**{kind: value})) for key, (kind, value) in values.items()]


def _text(*spans):
    """Return the tree as plain text."""
    output = io.StringIO()
    Console(file=output, width=1000).print(render_trace(spans), highlight=False)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def _expected(text):
    return textwrap.dedent(text).strip("\n")


def test_tree_shows_name_duration_kind_status_and_attributes():
    """Children stand below their parents in order of their start; times are ms."""
    root = _span("kong", end_ms=12.3456, kind=Span.SPAN_KIND_SERVER)
    root.attributes.extend(_attributes(method=("string_value", "GET"), code=("int_value", 200)))
    late = _span("kong.balancer", "kong", begin_ms=2, end_ms=12, kind=Span.SPAN_KIND_CLIENT)
    late.status.code = Status.STATUS_CODE_ERROR
    late.status.message = "refused"
    early = _span("kong.router", "kong", begin_ms=1, end_ms=1.5, status=Status(code=Status.STATUS_CODE_OK))
    leaf = _span("dns", "kong.router", begin_ms=1, end_ms=0)

    assert _text(leaf, late, root, early) == _expected("""
        trace 00000000000000000000000000000007  12.346 ms  4 spans
        └── kong  12.346 ms  server  code=200  method=GET
            ├── kong.router  0.500 ms  internal  ok
            │   └── dns  unfinished  internal
            └── kong.balancer  10.000 ms  client  error refused
    """)


def test_tree_shows_events():
    """Events stand below their span, before its children."""
    root = _span("kong")
    root.events.add(name="exception", attributes=_attributes(**{"exception.message": ("string_value", "boom")}))

    assert _text(root, _span("child", "kong")) == _expected("""
        trace 00000000000000000000000000000007  10.000 ms  2 spans
        └── kong  10.000 ms  internal
            ├── event exception  exception.message=boom
            └── child  10.000 ms  internal
    """)


def test_tree_shows_links():
    """Links stand below the events, with the ids of the span that each leads to."""
    root = _span("kong")
    root.events.add(name="received")
    link = root.links.add(trace_id=bytes(15) + b"\x09", span_id=bytes(7) + b"\x05")
    link.attributes.extend(_attributes(queue=("string_value", "orders")))

    assert _text(root) == _expected("""
        trace 00000000000000000000000000000007  10.000 ms  1 span
        └── kong  10.000 ms  internal
            ├── event received
            └── link 00000000000000000000000000000009 0000000000000005  queue=orders
    """)


def test_tree_shows_spans_that_belong_to_no_root():
    """Orphans and spans in a circle are shown too, and marked."""
    spans = [_span("kong"), _span("child", "lost"), _span("leaf", "child"), _span("a", "b"), _span("b", "a")]

    assert _text(*spans) == _expected("""
        trace 00000000000000000000000000000007  10.000 ms  5 spans
        ├── kong  10.000 ms  internal
        ├── child  10.000 ms  internal  (orphan)
        │   └── leaf  10.000 ms  internal
        └── a  10.000 ms  internal  (its own ancestor)
            └── b  10.000 ms  internal
    """)


def test_tree_of_unfinished_spans_has_no_duration():
    """Without any end there is no duration to show."""
    assert _text(_span("kong", end_ms=0)).startswith("trace 00000000000000000000000000000007  unfinished  1 span\n")


def test_kind_that_has_no_name_is_shown_by_its_number():
    """The field is open: a sender may know a kind that we do not, and a damaged one may send anything."""
    assert _text(_span("kong", kind=99)).endswith("kong  10.000 ms  kind 99")
    assert _text(_span("kong", kind=-1)).endswith("kong  10.000 ms  kind -1")


def test_span_without_a_start_does_not_reach_back_to_1970():
    """A time of 0 is none; the trace begins with the first span that has one."""
    unset = _span("early", "kong")
    unset.start_time_unix_nano = 0

    assert _text(_span("kong"), unset) == _expected("""
        trace 00000000000000000000000000000007  10.000 ms  2 spans
        └── kong  10.000 ms  internal
            └── early  no start  internal
    """)


def test_every_kind_of_value_is_shown():
    """OTLP's values in short; an absent one, which is what Kong sends for unsupported types, is told apart."""
    number = AnyValue(double_value=0.5)
    root = _span("kong")
    root.attributes.extend(
        _attributes(
            a=("bool_value", True),
            b=("double_value", 0.25),
            c=("bytes_value", b"\x01\xff"),
            d=("array_value", ArrayValue(values=[number, AnyValue(int_value=1)])),
            e=("kvlist_value", KeyValueList(values=[KeyValue(key="k", value=number)])),
        )
    )
    root.attributes.add(key="f")

    assert _text(root).endswith("a=true  b=0.25  c=01ff  d=[0.5, 1]  e={k: 0.5}  f=(none)")


def test_long_values_and_long_lists_are_cut():
    """What is cut says so."""
    root = _span("kong")
    root.attributes.extend(_attributes(a=("string_value", "x" * 100)))
    root.attributes.extend(_attributes(**{f"b{number:02}": ("int_value", number) for number in range(20)}))
    text = _text(root)

    assert f"a={'x' * (VALUE_SHOWN_MAX - 1)}…" in text
    assert text.endswith(f"b{ATTRIBUTES_SHOWN_MAX - 2:02}={ATTRIBUTES_SHOWN_MAX - 2}  and 9 more")


def test_control_characters_do_not_reach_the_terminal():
    """What a client put into a span cannot move the cursor, nor is markup taken for markup."""
    text = _text(_span("\x1b[31mred[bold]"))

    assert "\x1b" not in text
    assert r"\x1b[31mred[bold]" in text


def test_line_breaks_and_their_like_are_shown_as_escapes():
    """A stack trace stays on its line and can be read; what is printable stands there as it came."""
    root = _span("kong")
    value = "File 'a.py'\n\tcaf\xe9 \u65e5\r\u202e\x9b2J"
    root.attributes.extend(_attributes(a=("string_value", value), b=("string_value", r"C:\new")))

    assert _text(root).endswith("a=File 'a.py'" + r"\n\t" + "caf\xe9 \u65e5" + r"\r\u202e\x9b2J  b=C:\new")


def test_deep_trace_is_shown():
    """A chain of spans deeper than Python's recursion limit is no obstacle."""
    spans = [_span("s0")] + [_span(f"s{depth}", f"s{depth - 1}") for depth in range(1, 1500)]

    assert sum(1 for _ in _leaves(render_trace(spans))) == 1500


def _leaves(tree):
    stack = list(tree.children)
    while stack:
        branch = stack.pop()
        yield branch
        stack += branch.children
