"""The picture of a probing: what each encoder tells of each target, look by look."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vjepa_mpc.core.files import atomic_path
from vjepa_mpc.pretrain.probing import NOTHING, Probing


def save_figure(found: Probing, path: Path) -> None:
    """Write the PNG, atomically: R2 by target, one panel a look; an attentive probe's bars are hatched."""
    from matplotlib.figure import Figure

    bars = [(name, probe) for name, probes in found.scores.items() if name != NOTHING for probe in probes]
    names = list(dict.fromkeys(name for name, _ in bars))
    places = np.arange(len(found.targets))
    figure = Figure(figsize=(max(6.0, 1.2 + 0.35 * len(bars) * len(places)), 2.6 * len(found.looks)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(found.looks), 1, squeeze=False)[:, 0]
    for panel, (look, count) in zip(panels, found.looks.items(), strict=True):
        for number, (name, probe) in enumerate(bars):
            heights = [max(0.0, found.scores[name][probe][look][target.name].r2 or 0.0) for target in found.targets]
            panel.bar(
                places + 0.8 * ((number + 0.5) / len(bars) - 0.5), heights, 0.8 / len(bars), label=f"{name}, {probe}",
                color=f"C{names.index(name) % 10}", hatch="//" if probe == "attentive" else None, edgecolor="white",
            )  # fmt: skip
        panel.set(ylim=(0, 1), ylabel="R2 (below 0 drawn as 0)", title=f"{look} ({count} held-out examples)")
        panel.set_xticks(places, [target.name for target in found.targets], fontsize=8)
    panels[0].legend(fontsize=7)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
