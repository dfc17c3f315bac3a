"""What every HTML page of this package is made of: no scripts, nothing from the network, opened from disk."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from html import escape
from typing import Any, cast

import numpy as np
from jaxtyping import Float, UInt8

from vjepa_mpc.datasets.conversion import fitted, resized

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_FRAMES = 240  # of an episode in its video
_SIDE = 160  # pixels of a video's shorter side
_PLOT = (420, 110)  # pixels
_POINTS = 400  # of a line
_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}section{border-top:1px solid #ccc;padding:.7em 0}
.row{display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start}figure{margin:0}figcaption{font-size:12px;color:#555}
svg{background:#fafafa;border:1px solid #ddd}.bad{color:#a00}.good{color:#060}video{display:block;background:#000}
video{min-width:160px}img{max-width:100%}
.facts td{text-align:left}.numbers td{white-space:nowrap}pre{overflow-x:auto}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page around its parts."""
    policy = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style></head><body>'
        + "\n".join(parts)
        + "</body></html>\n"
    )


def film_figure(content: str, caption: str) -> str:
    """A video, its file in base64, above its caption (HTML)."""
    return (
        f'<figure><video controls loop muted preload="auto" src="data:video/mp4;base64,{content}"></video>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def picture_figure(content: str, caption: str) -> str:
    """A picture, its PNG file in base64, above its caption (HTML)."""
    return f'<figure><img src="data:image/png;base64,{content}"><figcaption>{caption}</figcaption></figure>'


def encoded_video(frames: UInt8[np.ndarray, "t h w 3"], rate: float) -> str:
    """The first frames as an H.264 file in base64, sides made even as browsers need them."""
    import av

    height, width = fitted(frames.shape[1], frames.shape[2], _SIDE)
    size = (max(height // 2 * 2, 2), max(width // 2 * 2, 2))
    content = io.BytesIO()
    with cast(Any, av.open(content, "w", format="mp4")) as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000), options={"crf": "26"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number, frame in enumerate(frames[:_FRAMES]):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(resized(frame, size)), format="rgb24")
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return base64.b64encode(content.getvalue()).decode()


def line_plot(
    what: str, times: Float[np.ndarray, "t"], values: Float[np.ndarray, "t w"], names: Sequence[str]
) -> str:
    """Lines against time as SVG, with the range on the left and names below."""
    if not len(values):
        return ""
    width, height = _PLOT
    chosen = np.unique(np.linspace(0, len(values) - 1, min(_POINTS, len(values))).round().astype(int))
    times, values = times[chosen], values[chosen]
    low, high = float(values.min()), float(values.max())
    across = (times - times[0]) / max(float(times[-1] - times[0]), 1e-9) * (width - 8) + 4
    down = height - 6 - (values - low) / max(high - low, 1e-9) * (height - 12)
    lines, legend = "", ""
    for column, name in enumerate(names):
        colour = COLOURS[column % len(COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down[:, column], strict=True))
        lines += f'<polyline fill="none" stroke="{colour}" points="{points}"/>'
        legend += f'<span style="color:{colour}">{escape(name)}</span> '
    label = f"{what}, {low:.3g} to {high:.3g}: {legend}"
    return f'<figure><svg width="{width}" height="{height}">{lines}</svg><figcaption>{label}</figcaption></figure>'
