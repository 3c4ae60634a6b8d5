"""overhead.html: the plot of arms with their intervals, and of the parts; one file that needs no other."""

from pathlib import Path

from plotly.graph_objects import Figure as Plot
from plotly.graph_objects import Scatter
from plotly.io import to_html

from sim.overhead.outcome import Figure, Outcome

_BLUE, _GREY = "#1f5fa8", "#8a8f98"


def write(outcome: Outcome, path: Path) -> None:
    """Write the page."""
    plan = outcome.measurement.plan
    plots = [_arms(outcome), *([_parts(outcome)] if outcome.breakdown else [])]
    shown = [
        to_html(plot, full_html=False, include_plotlyjs=not index, config={"displayModeBar": False})
        for index, plot in enumerate(plots)
    ]
    path.write_text(
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{plan.scenario.name}: overhead</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "h1{font-size:1.4rem}p.sum{font-size:1.15rem}</style>"
        f"<h1>What tracing costs: {plan.scenario.name}, profile {plan.scenario.profile}, {plan.rate_per_s:g}/s</h1>"
        f"<p class='sum'>{outcome.sentence}</p>{''.join(shown)}"
        "<p>Bars are 95 % intervals. The arm marked A/A is the baseline once more: what it adds is known to be 0.</p>"
        "</html>\n",
        encoding="utf-8",
    )


def _arms(outcome: Outcome) -> Plot:
    rows = [
        (f"{arm.arm} (A/A)" if arm.is_control else arm.arm, arm.figures["added_us"], arm.is_control)
        for arm in outcome.arms
        if "added_us" in arm.figures
    ]
    baseline = outcome.measurement.plan.arms[0].name
    return _dots(rows, f"CPU that each arm adds to {baseline}, us a request")


def _parts(outcome: Outcome) -> Plot:
    assert outcome.breakdown is not None
    rows = [(name, figure, False) for name, figure in outcome.breakdown.parts.items()]
    return _dots(rows, f"Where {outcome.breakdown.arm} goes, us a request")


def _dots(rows: list[tuple[str, Figure, bool]], title: str) -> Plot:
    known = [(place, figure.value, control) for place, (_, figure, control) in enumerate(rows) if figure.value]
    plot = Plot(
        Scatter(
            x=[value.value for _, value, _ in known],
            y=[place for place, _, _ in known],
            text=[figure.text() for _, figure, _ in rows if figure.value],
            hoverinfo="text",
            mode="markers",
            marker={"size": 10, "color": [_GREY if control else _BLUE for _, _, control in known]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [value.high - value.value for _, value, _ in known],
                "arrayminus": [value.value - value.low for _, value, _ in known],
                "thickness": 2,
                "color": _BLUE,
            },
        )
    )
    for place, (_, figure, _) in enumerate(rows):
        if figure.value is None:
            plot.add_annotation(x=0, y=place, text=figure.text(), showarrow=False, xanchor="left", xshift=6)
    plot.update_layout(
        title=title,
        template="plotly_white",
        height=160 + 45 * len(rows),
        margin={"l": 20, "r": 20, "t": 60, "b": 40},
        yaxis={
            "tickvals": [*range(len(rows))],
            "ticktext": [name for name, _, _ in rows],
            "range": [len(rows) - 0.5, -0.5],
            "automargin": True,
            "zeroline": False,
        },
        xaxis={"zeroline": True, "zerolinecolor": "#444", "rangemode": "tozero"},
    )
    return plot
