"""The page of `foretelling`: figures and success of the checkpoints, their rank correlations, and both as plots."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from vjepa_mpc.core.files import write_text
from vjepa_mpc.datasets.html_page import COLOURS, document
from vjepa_mpc.intervals import RankCorrelation
from vjepa_mpc.pretrain.foretelling import FIGURES, OUTCOMES, Foretelling, Played

_READING = """
<p>A row a checkpoint: figures of <code>validate-model</code> on logged episodes, and what
<code>evaluate</code> found in closed loop. <b>error / copying</b>: latent error at the last model step over
that of copying the last frame. <b>rank</b>: share of random actions whose imagined end looks better than the
logged ones'. <b>contrast</b>: median cost of random actions over the logged ones'. <b>end chosen</b>: how far
from the logged end the cheapest random actions end (median). <b>steps</b>: of training, which takes no
validation to know. <b>held</b>, <b>hit</b>: success, with 95 % Wilson intervals. <b>end</b>: median final
distance.</p>
"""
_CORRELATIONS = """
<p>Spearman's rank correlation over the checkpoints, all turned so that better counts as more: 1 means that
the figure puts the checkpoints in the order of their success, -1 in the reverse, 0 tells nothing. Brackets:
95 % interval; p: of so strong an order, or reverse, by chance. The intervals know of the checkpoints alone:
neighbours in one run are alike, and success is itself measured on a limited number of pairs, so the truth is
less certain than they say. - : the same for all checkpoints.</p>
"""
_PLOT, _EDGE = (220, 150), 10  # pixels


def write_page(found: Foretelling, played: Played, facts: Mapping[str, str], path: Path) -> None:
    """Write the page, which holds everything it shows. `facts`: what to say of the run, by name."""
    rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in facts.items())
    parts = [
        f"<h1>What foretells success</h1><table class='facts'>{rows}</table>",
        _READING,
        _checkpoints(found, played),
        _CORRELATIONS,
        _correlations(found),
        f'<div class="row">{"".join(_plot(found, name) for name in FIGURES)}</div>',
    ]
    write_text(path, document("What foretells success", parts))


def told(one: RankCorrelation | None) -> str:
    """A correlation in a cell of a table."""
    return "-" if one is None else f"{one.rho:+.2f} [{one.low:+.2f}, {one.high:+.2f}], p {one.p:.2g}"


def _checkpoints(found: Foretelling, played: Played) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in (*FIGURES, "held", "hit", "end"))
    lines = ""
    for step, figures in found.figures.items():
        row = played.rows[step]
        cells = [f"{figures[name]:.4g}" for name in FIGURES]
        cells += [_rate(row["held"]), _rate(row["hit"]), f"{found.outcomes[step]['end']:.4g} m"]
        lines += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table class='numbers'><tr>{head}</tr>{lines}</table>"


def _rate(of: Mapping[str, Any]) -> str:
    return f"{100 * of['rate']:.0f} % [{100 * of['wilson_low']:.0f}, {100 * of['wilson_high']:.0f}]"


def _correlations(found: Foretelling) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("figure", *OUTCOMES))
    lines = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{escape(told(row[of]))}</td>" for of in OUTCOMES) + "</tr>"
        for name, row in found.correlations.items()
    )
    return f"<table class='numbers'><tr>{head}</tr>{lines}</table>"


def _plot(found: Foretelling, name: str) -> str:
    """Held against the figure, a point a checkpoint, which says its step when it is pointed at."""
    width, height = _PLOT
    values = {step: figures[name] for step, figures in found.figures.items()}
    low, high = min(values.values()), max(values.values())
    marks = ""
    for number, (step, value) in enumerate(values.items()):
        held = found.outcomes[step]["held"]
        x = _EDGE + (value - low) / ((high - low) or 1.0) * (width - 2 * _EDGE)
        y = height - _EDGE - held * (height - 2 * _EDGE)
        shade = 0.3 + 0.7 * number / max(1, len(values) - 1)  # later ones are darker
        marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{COLOURS[0]}" fill-opacity="{shade:.2f}">'
        marks += f"<title>step {step}: {value:.4g}, held {100 * held:.0f} %</title></circle>"
    caption = f"held, 0 to 100 %, against {escape(name)}, {low:.3g} to {high:.3g}; darker: later"
    return f'<figure><svg width="{width}" height="{height}">{marks}</svg><figcaption>{caption}</figcaption></figure>'
