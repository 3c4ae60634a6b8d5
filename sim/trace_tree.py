"""A trace as a tree to print in a terminal."""

from typing import TYPE_CHECKING, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus
from rich.text import Text
from rich.tree import Tree

from sim.traces import is_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

__all__ = ["ATTRIBUTES_SHOWN_MAX", "VALUE_SHOWN_MAX", "render_trace"]

ATTRIBUTES_SHOWN_MAX: Final = 12
"""How many attributes of a span or event are shown."""

VALUE_SHOWN_MAX: Final = 60
"""How many characters of an attribute's value are shown."""

_KINDS: Final = {number: name.removeprefix("SPAN_KIND_").lower() for name, number in Span.SpanKind.items()}
_NS_PER_MS: Final = 1_000_000


def render_trace(spans: "Sequence[Span]") -> Tree:
    """Return the spans of one trace as a tree to print: name, duration in ms, kind, status, attributes, events, links.

    Spans whose parent is lacking (orphans) or that descend from themselves stand at the top and say so.
    """
    span_ids = {span.span_id: None for span in spans}
    children: dict[bytes, list[Span]] = {}
    tops: list[tuple[Span, str]] = []
    for span in sorted(spans, key=_start_ns):
        if is_root(span, span_ids):
            tops.append((span, ""))
        elif span.parent_span_id not in span_ids:
            tops.append((span, "orphan"))
        else:
            children.setdefault(span.parent_span_id, []).append(span)
    begin_ns = min(filter(None, map(_start_ns, spans)), default=0)
    end_ns = max(span.end_time_unix_nano for span in spans)
    count = f"{len(spans)} span{'s' * (len(spans) != 1)}"
    tree = Tree(Text(f"trace {spans[0].trace_id.hex()}  {_ms(begin_ns, end_ns)}  {count}", style="bold"))
    for span, mark in tops:
        _grow(tree, span, mark, children)
    while children:  # what no top leads to: each circle is cut somewhere
        span = next(iter(children.values())).pop(0)
        _grow(tree, span, "its own ancestor", children)
        children = {parent_id: left for parent_id, left in children.items() if left}
    return tree


def _grow(tree: Tree, top: Span, mark: str, children: "dict[bytes, list[Span]]") -> None:
    """Add `top` and its descendants, and take these from `children`."""
    stack = [(tree, top, mark)]
    while stack:
        above, span, mark = stack.pop()
        branch = above.add(_line(span, mark))
        for event in span.events:
            line = Text("event ", style="dim").append(_legible(event.name), style="magenta")
            branch.add(line.append_text(_attributes(event.attributes)))
        for link in span.links:
            line = Text("link ", style="dim").append(f"{link.trace_id.hex()} {link.span_id.hex()}", style="magenta")
            branch.add(line.append_text(_attributes(link.attributes)))
        stack += [(branch, child, "") for child in reversed(children.pop(span.span_id, []))]


def _line(span: Span, mark: str) -> Text:
    line = Text(_legible(span.name), style="default").append(
        f"  {_ms(span.start_time_unix_nano, span.end_time_unix_nano)}", style="cyan"
    )
    if span.kind:
        line.append(f"  {_KINDS.get(span.kind, f'kind {span.kind}')}", style="blue")
    if span.status.code == SpanStatus.STATUS_CODE_OK:
        line.append("  ok", style="green")
    elif span.status.code == SpanStatus.STATUS_CODE_ERROR:
        line.append(f"  error {_legible(span.status.message)}".rstrip(), style="bold red")
    if mark:
        line.append(f"  ({mark})", style="bold yellow")
    return line.append_text(_attributes(span.attributes))


def _attributes(attributes: "Sequence[KeyValue]") -> Text:
    text = Text(style="dim")
    for attribute in sorted(attributes, key=lambda attribute: attribute.key)[:ATTRIBUTES_SHOWN_MAX]:
        value = _legible(_value(attribute.value))
        shown = value if len(value) <= VALUE_SHOWN_MAX else value[: VALUE_SHOWN_MAX - 1] + "…"
        text.append(f"  {_legible(attribute.key)}={shown}")
    if len(attributes) > ATTRIBUTES_SHOWN_MAX:
        text.append(f"  and {len(attributes) - ATTRIBUTES_SHOWN_MAX} more")
    return text


def _value(value: "AnyValue") -> str:
    match kind := value.WhichOneof("value"):
        case None:
            return "(none)"
        case "array_value":
            return f"[{', '.join(map(_value, value.array_value.values))}]"
        case "kvlist_value":
            return f"{{{', '.join(f'{pair.key}: {_value(pair.value)}' for pair in value.kvlist_value.values)}}}"
        case "bytes_value":
            return value.bytes_value.hex()
        case "bool_value":
            return str(value.bool_value).lower()
        case _:
            return str(getattr(value, kind))


def _ms(start_ns: int, end_ns: int) -> str:
    if not end_ns:
        return "unfinished"
    return f"{(end_ns - start_ns) / _NS_PER_MS:.3f} ms" if start_ns else "no start"


def _start_ns(span: Span) -> int:
    start_ns: int = span.start_time_unix_nano
    return start_ns


def _legible(text: str) -> str:
    """Return a text with Python's escapes in the place of what would steer the terminal or break the line."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
