"""Pages that need nothing but themselves: their tables, plots and style; plotly's JavaScript is part of the file.

Every text that is handed in is escaped here, but for `content`, which is HTML already. A plot is data, in the shape of
plotly.js: making objects of its Python package takes 0.3 s a plot. Needs plotly, of the extras `report` and `overhead`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from plotly.offline import get_plotlyjs
from rich.table import Column, Table
from rich.text import Text

__all__ = ["escape", "figure", "page", "table"]

_STYLE: Final = """
:root { --ink: #1f2430; --dim: #6b7280; --line: #e3e6ea; --good: #1a7f42; --bad: #c0282d; --odd: #96690b }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }
h3 { font-size: .95rem; margin: 1.5rem 0 .4rem }
p { margin: .4rem 0; overflow-wrap: anywhere }
.dim { color: var(--dim) } .good, .green { color: var(--good) } .bad, .red { color: var(--bad) }
.odd, .yellow { color: var(--odd) } .bold { font-weight: 600 }
.verdict { margin: 1rem 0; padding: .7rem 1rem; border-left: .35rem solid; background: #f6f7f9; font-size: 1.05rem }
.verdict b { letter-spacing: .04em; margin-right: .6rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0 }
.tile { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .75rem }
.tile b { display: block; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile span { color: var(--dim); font-size: .85rem }
.wide { overflow-x: auto; margin: .4rem 0 1rem }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .7rem; text-align: left; vertical-align: bottom; white-space: pre }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; padding-left: 0 }
th { color: var(--dim); font-weight: 500; border-bottom: 1px solid var(--line) }
tbody tr:nth-child(even) td { background: #f8f9fb }
.right { text-align: right }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem 1.5rem }
.keys span { display: inline-block; margin-right: 1.1rem; font-size: .875rem }
.keys i { display: inline-block; width: 1.1rem; height: .8rem; margin-right: .4rem; vertical-align: -.08rem }
.keys i.line { height: .18rem; vertical-align: .22rem }
figure { margin: .5rem 0 0; min-width: 0 }
figcaption { font-weight: 600; font-size: .95rem }
ul { margin: .4rem 0; padding-left: 1.2rem }
li { overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .4rem 0; font-size: .9rem }
dt { color: var(--dim) } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 30rem) {
  .fold { white-space: pre-wrap } dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem }
}
@media print {
  @page { margin: 12mm }
  body { max-width: none; padding: 0; font-size: 12px; print-color-adjust: exact; -webkit-print-color-adjust: exact }
  .wide { overflow: visible } th:first-child, td:first-child { position: static }
  .plots { grid-template-columns: 1fr }
  tr, figure, .verdict, .tile { break-inside: avoid } h2, h3 { break-after: avoid }
}
"""

_PRINTABLE: Final = """
const drawAgain = layout => document.querySelectorAll(".js-plotly-plot").forEach(plot => Plotly.relayout(plot, layout));
addEventListener("beforeprint", () => drawAgain({ width: 680 }));
addEventListener("afterprint", () => drawAgain({ width: null, autosize: true }));
"""
"""A plot keeps the width that it was drawn with: it is drawn again for the paper, A4 or Letter, and for the screen."""

_AXIS: Final[dict[str, Any]] = {
    "automargin": True,
    "zeroline": False,
    "gridcolor": "#ebedf0",
    "ticks": "outside",
    "tickcolor": "#fff",
}
_LAYOUT: Final[dict[str, Any]] = {
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1f2430"},
    "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    "legend": {"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top"},
}
_CONFIG: Final = {"displayModeBar": False, "responsive": True}


def page(title: str, content: str) -> str:
    """Return a whole document."""
    return (
        "<!doctype html>\n<html lang='en'>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width'>\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n"
        f"<h1>{escape(title)}</h1>\n{content}\n<script>{_PRINTABLE}</script>\n</html>\n"
    )


def figure(title: str, traces: Sequence[Mapping[str, Any]], layout: dict[str, Any], height_px: int) -> str:
    """Return a plot as wide as there is room, under its title.

    Args:
        title: Of the plot.
        traces: Lines, points and areas, as plotly.js has them.
        layout: The same of all around them; it has an `xaxis` and a `yaxis`.
        height_px: Its height.
    """
    whole = _LAYOUT | layout | {name: _AXIS | layout[name] for name in ("xaxis", "yaxis")}
    arguments = ",".join(_script(content) for content in (traces, whole, _CONFIG))
    return (
        f"<figure><figcaption>{escape(title)}</figcaption><div style='height: {height_px}px'></div>"
        f"<script>Plotly.newPlot(document.currentScript.previousElementSibling,{arguments})</script></figure>\n"
    )


def _script(content: object) -> str:
    """Return data as JavaScript that cannot end its own element."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def table(shown: Table) -> str:
    """Return a table as the terminal shows it, colours and all; one that is wider than the screen is moved sideways."""
    head = _row("th", shown, (column.header for column in shown.columns))
    rows = zip(*(column.cells for column in shown.columns), strict=True)
    body = "\n".join(_row("td", shown, row) for row in rows)
    return f"<div class='wide'><table>\n<thead>{head}</thead>\n<tbody>{body}</tbody>\n</table></div>\n"


def _row(tag: str, shown: Table, cells: Iterable[object]) -> str:
    columns = zip(cells, shown.columns, strict=True)
    return f"<tr>{''.join(_cell(tag, cell, column) for cell, column in columns)}</tr>"


def _cell(tag: str, cell: object, column: Column) -> str:
    text = cell if isinstance(cell, Text) else Text(str(cell))
    return f"<{tag} class='{escape(f'{text.style} {column.justify} {column.overflow}')}'>{escape(text.plain)}</{tag}>"
