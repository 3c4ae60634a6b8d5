"""overhead.html: the plot of arms with their intervals, and of the parts; one file that needs no other."""

from pathlib import Path

from sim.overhead.outcome import Figure, Outcome
from sim.report import html

_BLUE, _GREY = "#1f5fa8", "#8a8f98"


def write(outcome: Outcome, path: Path) -> None:
    """Write the page; raises OSError."""
    plan = outcome.measurement.plan
    content = (
        f"<p class='dim'>profile {plan.scenario.profile}, {plan.rate_per_s:g}/s</p>\n"
        f"<p class='verdict'>{html.escape(outcome.sentence)}</p>\n"
        f"{_arms(outcome)}{_parts(outcome)}"
        "<p class='dim'>Bars are 95 % intervals. "
        "The arm marked A/A is the baseline once more: what it adds is known to be 0.</p>\n"
    )
    path.write_text(html.page(f"What tracing costs: {plan.scenario.name}", content), encoding="utf-8")


def _arms(outcome: Outcome) -> str:
    rows = [
        (f"{arm.arm} (A/A)" if arm.is_control else arm.arm, arm.figures["added_us"], arm.is_control)
        for arm in outcome.arms
        if "added_us" in arm.figures
    ]
    baseline = outcome.measurement.plan.arms[0].name
    return _dots(rows, f"CPU that each arm adds to {baseline}, us a request")


def _parts(outcome: Outcome) -> str:
    if outcome.breakdown is None:
        return ""
    rows = [(name, figure, False) for name, figure in outcome.breakdown.parts.items()]
    return _dots(rows, f"Where the tracing of {outcome.breakdown.arm} goes, us a request")


def _dots(rows: list[tuple[str, Figure, bool]], title: str) -> str:
    known = [(place, figure.value, control) for place, (_, figure, control) in enumerate(rows) if figure.value]
    dots = {
        "x": [value.value for _, value, _ in known],
        "y": [place for place, _, _ in known],
        "text": [figure.text() for _, figure, _ in rows if figure.value],
        "hoverinfo": "text",
        "mode": "markers",
        "marker": {"size": 10, "color": [_GREY if control else _BLUE for _, _, control in known]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [value.high - value.value for _, value, _ in known],
            "arrayminus": [value.value - value.low for _, value, _ in known],
            "thickness": 2,
            "color": _BLUE,
        },
    }
    layout = {
        "yaxis": {
            "tickvals": [*range(len(rows))],
            "ticktext": [html.escape(name) for name, _, _ in rows],
            "range": [len(rows) - 0.5, -0.5],
        },
        "xaxis": {"zeroline": True, "zerolinecolor": "#444", "rangemode": "tozero"},
        "annotations": [
            {"x": 0, "y": place, "text": figure.text(), "showarrow": False, "xanchor": "left", "xshift": 6}
            for place, (_, figure, _) in enumerate(rows)
            if figure.value is None
        ],
    }
    return html.figure(title, [dots], layout, 60 + 45 * len(rows))
