"""Recorders watch the control loop from outside: the loop hands them each step and knows nothing more.

The order is `start`, any number of `step`s, `close`; call `close` in a `finally`, so that what was
recorded until Ctrl-C or an error is kept.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc.core.errors import InputError, NotFiniteError
from vjepa_mpc.core.files import atomic_path

if TYPE_CHECKING:
    from av.video.stream import VideoStream
    from PIL import Image, ImageDraw

PANEL = 256  # pixels; the least side of a picture in the video
BAR = 40  # pixels; height of the captions above and of the curve below the pictures
GAP = 8  # pixels; between goal and view, which may look like one picture otherwise
INK, DIM, CURVE = (235, 235, 235), (70, 70, 70), (90, 170, 250)


@runtime_checkable
class RecordedStep(Protocol):
    """What a recorder needs of a step's record (the controller's record holds more).

    `step` counts from 0. `image` is the view the step was planned from, uint8 [H, W, 3]. `latent_cost` is
    how far that view is from the goal in the model's latent space; `distance` is the same in task units,
    None where nobody can measure it (a real robot, a goal photograph).
    """

    @property
    def step(self) -> int: ...

    @property
    def image(self) -> UInt8[np.ndarray, "height width 3"]: ...

    @property
    def latent_cost(self) -> float: ...

    @property
    def distance(self) -> float | None: ...


@runtime_checkable
class Recorder(Protocol):
    """Watches one episode. `close` may be called twice, and after an error."""

    def start(self, goal_image: UInt8[np.ndarray, "height width 3"], settings: Mapping[str, Any]) -> None: ...

    def step(self, record: RecordedStep) -> None: ...

    def close(self) -> None: ...


class VideoRecorder:
    """Writes an episode as MP4: the goal beside the view, captions, and the latent cost over time below.

    `path`: the video, which appears whole when closed; until then the compressed frames are in memory,
    where the encoder cannot meet a full disk. `fps`: frames a second, normally
    1 / control period. `scale`: enlargement of the view, whole pixels, nearest neighbour; None takes the
    least that gives panels of 256 pixels. `distance_unit` is written behind the distance. H.264, or
    MPEG-4 where the PyAV build has no x264.

    An episode closed without a step leaves no file. Raises `InputError` when the folder cannot be
    written (at `start`) or the disk is full (at `close`; an older video is kept).
    """

    def __init__(
        self, path: Path | str, fps: float, scale: int | None = None, distance_unit: str = ""
    ) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise InputError(f"A video needs a positive number of frames a second, got {fps}.")
        if scale is not None and scale < 1:
            raise InputError(f"A video's scale must be a whole number of at least 1, got {scale}.")
        self.path = Path(path)
        self._rate = Fraction(fps).limit_denominator(1000)
        self._scale = scale
        self._unit = distance_unit
        self._goal: UInt8[np.ndarray, "height width 3"] | None = None
        self._canvas: _Canvas | None = None
        self._film: _Film | None = None

    def start(self, goal_image: UInt8[np.ndarray, "height width 3"], settings: Mapping[str, Any]) -> None:
        """Begin an episode. `settings` are the run's; a video has no place for them."""
        assert self._goal is None, "a VideoRecorder records one episode at a time"
        with contextlib.suppress(_OnlyTrying), atomic_path(self.path):
            raise _OnlyTrying  # better to learn now than after the episode that nothing can be written
        self._goal = goal_image.copy()

    def turn(self, goal_image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Show another goal from the next frame on; the curve goes on."""
        assert self._goal is not None, "start() comes before turn()"
        self._goal = goal_image.copy()
        if self._canvas is not None:
            self._canvas.turn(self._goal)

    def step(self, record: RecordedStep) -> None:
        """Add one frame. The first one's picture size is that of the whole video."""
        assert self._goal is not None, "start() comes before step()"
        if not math.isfinite(record.latent_cost):
            raise NotFiniteError(f"The latent cost of step {record.step} is {record.latent_cost}.", record)
        if self._canvas is None:
            self._canvas = _Canvas(self._goal, record.image, self._scale, self._unit)
        frame = self._canvas.draw(record)
        if self._film is None:
            self._film = _Film(frame.shape[1], frame.shape[0], self._rate)
        self._film.add(frame)

    def close(self) -> None:
        """Put the file in place. What an interrupted episode recorded is kept and plays."""
        film = self._film
        self._goal = self._canvas = self._film = None
        if film is not None:
            content = film.finish()
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(content)


def write_video(
    path: Path | str, frames: Sequence[UInt8[np.ndarray, "height width 3"]], fps: float
) -> None:
    """Write pictures of one size as MP4, at `fps` frames a second; odd sides lose their last row or column."""
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    film = _Film(width, height, Fraction(fps).limit_denominator(1000))
    for frame in frames:
        film.add(np.ascontiguousarray(frame[:height, :width]))
    with atomic_path(path) as temporary:
        temporary.write_bytes(film.finish())


class _OnlyTrying(Exception):
    """Leaves `atomic_path` without a file."""


class _Film:
    """An MP4 encoded in memory: FFmpeg 8 was seen to crash when its output file meets a full disk."""

    def __init__(self, width: int, height: int, rate: Fraction) -> None:
        import av

        codec = _codec_name()
        self._content = io.BytesIO()
        self._container = av.open(self._content, "w", format="mp4")
        self._stream = cast("VideoStream", self._container.add_stream(codec, rate=rate))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            # one thread: the planner needs the others, and the file is then the same every time
            self._stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
        else:
            self._stream.bit_rate = 8_000_000

    def add(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        import av

        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._content.getvalue()


def _codec_name() -> str:
    import av

    try:
        av.Codec("libx264", "w")
    except ValueError:  # PyAV's UnknownCodecError
        return "mpeg4"
    return "libx264"


class _Canvas:
    """Draws the frames of one video: captions above, goal left, view right, cost curve below."""

    def __init__(
        self,
        goal: UInt8[np.ndarray, "gh gw 3"],
        first_view: UInt8[np.ndarray, "vh vw 3"],
        scale: int | None,
        unit: str,
    ) -> None:
        from PIL import Image, ImageFont

        height, width = first_view.shape[:2]
        factor = scale if scale is not None else max(1, math.ceil(PANEL / min(height, width)))
        self._panel = (width * factor, height * factor)
        self._width = 2 * self._panel[0] + GAP
        self._height = BAR + self._panel[1] + self._panel[1] % 2 + BAR  # yuv420p wants even sides
        self._unit = unit
        self._font = ImageFont.load_default(12)
        self._goal = _fitted(Image.fromarray(goal), self._panel)
        self._costs: list[float] = []

    def turn(self, goal: UInt8[np.ndarray, "gh gw 3"]) -> None:
        """The goal picture from now on."""
        from PIL import Image

        self._goal = _fitted(Image.fromarray(goal), self._panel)

    def draw(self, record: RecordedStep) -> UInt8[np.ndarray, "height width 3"]:
        """The frame of one step, which joins the curve."""
        from PIL import Image, ImageDraw

        self._costs.append(record.latent_cost)
        frame = Image.new("RGB", (self._width, self._height))
        frame.paste(self._goal, (0, BAR))
        frame.paste(_fitted(Image.fromarray(record.image), self._panel), (self._panel[0] + GAP, BAR))
        pen = ImageDraw.Draw(frame)
        step = f"step {record.step}   latent cost {record.latent_cost:.4g}"
        if record.distance is not None:
            step += f"   distance {record.distance:.4g} {self._unit}"
        pen.text((6, 4), step.rstrip(), fill=INK, font=self._font)
        pen.text((6, 22), "goal", fill=INK, font=self._font)
        pen.text((self._panel[0] + GAP + 6, 22), "view", fill=INK, font=self._font)
        self._draw_curve(pen)
        return np.asarray(frame)

    def _draw_curve(self, pen: ImageDraw.ImageDraw) -> None:
        """The costs so far over the whole width, from 0 at the bottom to the highest at the top."""
        bottom, room = self._height - 5, BAR - 10
        top = max(max(self._costs), 0.0) or 1.0
        pen.line([(0, bottom), (self._width, bottom)], fill=DIM)
        along = np.linspace(4, self._width - 5, max(len(self._costs), 2))
        points = [
            (float(x), bottom - room * max(cost, 0.0) / top)
            for x, cost in zip(along, self._costs, strict=False)
        ]
        if len(points) > 1:
            pen.line(points, fill=CURVE, width=2)
        x, y = points[-1]
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=CURVE)


def _fitted(picture: Image.Image, panel: tuple[int, int]) -> Image.Image:
    """Fit a picture into a panel [width, height] on black: enlarged in hard pixels, shrunk smoothly."""
    from PIL import Image, ImageOps

    enlarging = picture.width <= panel[0] and picture.height <= panel[1]
    method = Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS
    return ImageOps.pad(picture, panel, method=method, color="black")


def plot_episode(
    costs: Sequence[float], distances: Sequence[float | None], path: Path | str, distance_unit: str = ""
) -> None:
    """Draw latent cost and, where known, distance in task units over the steps of an episode, as PNG.

    The two fall together where the latent space is a good measure of the task. Raises `InputError` when
    there is no step, the lengths differ, or `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not costs or len(costs) != len(distances):
        raise InputError(
            f"A plot needs as many costs as distances and one at least: {len(costs)}, {len(distances)}."
        )
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(costs, color="tab:blue", marker=".")
    axes.set(xlabel="step", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("latent cost", color="tab:blue")
    if any(distance is not None for distance in distances):
        known = [math.nan if distance is None else distance for distance in distances]
        other = axes.twinx()
        other.plot(known, color="tab:orange", marker=".")
        other.set_ylim(0, None)
        other.set_ylabel(f"distance [{distance_unit}]" if distance_unit else "distance", color="tab:orange")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
