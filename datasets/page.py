"""One self-contained HTML page that shows a store: `vjepa-mpc data view`. No scripts, nothing from the network."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc.core.files import write_text
from vjepa_mpc.datasets.findings import REMEDIES
from vjepa_mpc.datasets.html_page import document, encoded_video, film_figure, line_plot
from vjepa_mpc.datasets.logs import only
from vjepa_mpc.datasets.statistics import statistics
from vjepa_mpc.datasets.store import ZarrStore
from vjepa_mpc.datasets.summary import describe
from vjepa_mpc.datasets.validation import Validation

Progress = Callable[[int, int], None]

_LISTED = 100  # findings


def write_page(
    store: ZarrStore, out: Path, found: Validation | None, episodes: int, progress: Progress | None = None
) -> list[int]:
    """Write the page; returns the episodes shown, at most `episodes`, evenly spread over the store.

    `found`: the result of `validate`, None to leave it out. The page holds everything it shows (videos as H.264, at
    most 240 frames of 160 pixels each). Damaged episodes are shown as such. `InputError` when none can be read.
    """
    numbers = statistics(store)
    shown = sorted(set(np.linspace(0, len(store) - 1, min(episodes, len(store))).round().astype(int).tolist()))
    parts = [_head(store), _report(found), _tables(store, numbers)]
    for done, index in enumerate(shown, 1):
        parts.append(_episode(store, index))
        if progress is not None:
            progress(done, len(shown))
    write_text(out, document(only(store.path), parts))
    return shown


def _head(store: ZarrStore) -> str:
    value = describe(store)
    provenance = value["provenance"]
    lengths = value["episode_lengths"]
    rows = {
        "robot": f"{value['robot']}, state model {value['state_model']}",
        "episodes": f"{value['episodes']} of {lengths['min']} to {lengths['max']} frames",
        "frames": f"{value['frames']}, {value['duration_s'] / 60:.1f} minutes",
        "rate": f"{1 / value['control_period_s']:.4g} observations a second",
        "cameras": ", ".join(f"{name} {w} x {h}" for name, (h, w) in value["cameras"].items()),
        "on disk": f"{value['bytes_on_disk'] / 1e6:.1f} MB",
        "made by": f"{provenance.get('command', '-')}, version {provenance.get('version', '-')}",
        "content": value["content_hash"],
    }
    recipe = provenance.get("recipe")
    rows |= {f"recipe: {key}": _worded(item) for key, item in (recipe if isinstance(recipe, dict) else {}).items()}
    cells = "".join(f"<tr><td>{escape(key)}</td><td>{escape(text)}</td></tr>" for key, text in rows.items())
    return f'<h1>{escape(only(store.path))}</h1><table class="facts">{cells}</table>'


def _worded(value: object) -> str:
    """A setting as one would write it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_worded(item)}" for key, item in value.items())
    return ", ".join(map(_worded, value)) if isinstance(value, list | tuple) else "-" if value is None else str(value)


def _report(found: Validation | None) -> str:
    if found is None:
        return "<h2>Validation</h2><p>Not run for this page.</p>"
    if not found.findings:
        return f'<h2>Validation</h2><p class="good">Nothing is wrong with its {found.episodes} episodes.</p>'
    lines = "".join(f"<li>{escape(str(finding))}</li>" for finding in found.findings[:_LISTED])
    more = len(found.findings) - _LISTED
    rest = f"<p>{more} more are not shown.</p>" if more > 0 else ""
    remedies = ", ".join(f"{check}: {REMEDIES[check]}" for check in sorted({f.check for f in found.findings}))
    return f'<h2>Validation</h2><ul class="bad">{lines}</ul>{rest}<p>A mended copy has: {escape(remedies)}.</p>'


def _tables(store: ZarrStore, numbers: dict[str, Any]) -> str:
    columns = ("mean", "std", "min", "q01", "q50", "q99", "max")
    text = "<h2>Statistics</h2>"
    for kind, units in (("states", store.spec.state_units), ("actions", store.spec.action_units)):
        head = "".join(f"<th>{name}</th>" for name in (kind, "unit", *columns))
        rows = ""
        for (name, row), unit in zip(numbers[kind].items(), units, strict=True):
            cells = "".join(f"<td>{row[column]:.4g}</td>" if column in row else "<td>-</td>" for column in columns)
            rows += f"<tr><td>{escape(name)}</td><td>{escape(unit)}</td>{cells}</tr>"
        text += f"<table><tr>{head}</tr>{rows}</table>"
    lengths, tasks = numbers["lengths"], list(numbers["tasks"].items())[:20]
    text += f"<p>Lengths {lengths['min']:g} to {lengths['max']:g}, {lengths['q50']:g} in the middle; "
    text += f"{numbers['motionless_share']:.1%} of the steps without motion.</p>"
    if numbers["unreadable"]:
        text += f'<p class="bad">{len(numbers["unreadable"])} episodes cannot be read and are not counted here.</p>'
    items = "".join(f"<li>{escape(task or '(no task)')}: {count} episodes</li>" for task, count in tasks)
    return f"{text}<ul>{items}</ul>"


def _episode(store: ZarrStore, index: int) -> str:
    """An episode's videos and plots, or why it cannot be shown."""
    try:
        episode = store.read(index)
    except ValueError as error:
        return f'<section><h3>Episode {index}</h3><p class="bad">{escape(str(error))}</p></section>'
    spec = store.spec
    rate = 1 / spec.control_period_s
    videos = "".join(
        film_figure(encoded_video(frames, rate), escape(camera)) for camera, frames in episode.images.items()
    )
    times = episode.times - episode.times[0]
    plots = line_plot("state", times, episode.states, spec.state_names)
    plots += line_plot("action", times[:-1], episode.actions, spec.action_names)
    task = str(episode.metadata.get("task") or "")
    title = f"Episode {index}: {len(episode)} frames, {times[-1]:.2f} s" + (f", {task}" if task else "")
    return f'<section><h3>{escape(title)}</h3><div class="row">{videos}<div>{plots}</div></div></section>'
