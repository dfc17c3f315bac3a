"""Bring a log into a store: declare the mapping, look at everything first, then convert, resumably.

    plan = prepare(settings)                      # reads numbers, no store yet: what the dry run shows
    report = run(plan, stream=...)                # converts what the store does not hold yet
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vjepa_mpc import __version__
from vjepa_mpc.core.errors import InputError, first_line, unknown_name
from vjepa_mpc.core.files import write_json
from vjepa_mpc.core.settings import commit
from vjepa_mpc.datasets.conversion import Converted, Converter, fitted
from vjepa_mpc.datasets.episode import StoreSpec
from vjepa_mpc.datasets.logs import Exported, Log, LogOptions, fingerprint
from vjepa_mpc.datasets.mapping import LogMapping, as_exported, declare
from vjepa_mpc.datasets.opening import open_log
from vjepa_mpc.datasets.store import ZarrStore, ZarrWriter
from vjepa_mpc.datasets.survey import Survey, describe_store, log_period, store_period, survey

REPORT = Path("meta/import.json")
Progress = Callable[[int, int], None]  # called with episodes done and episodes in all
Stream = Callable[[Iterable[str]], Iterator[Converted]]  # episodes' names to what became of them, in order

_MANY_FILES = 20_000  # more of them, and copying, listing and deleting a store hurt
_SHARD_BYTES = 64 << 20  # of a file's frames, unpacked
_SAMPLES = 3  # episodes of which a few pictures are read for the size estimate and the preview


@dataclass(frozen=True)
class ImportSettings:
    """What to import and how. `state`, `action`, `cameras`: the mapping (`mapping.py`; cameras as SOURCE or
    NAME=SOURCE, none = all). `rate_hz`: the store's control rate, None = the log's. `size`: pixels of a picture's
    shorter side, None = as it is. `episodes`: only the first so many, None = all. `shard_frames`: frames in a file,
    0 = a file a chunk, None = that, unless there would be too many files."""

    source: Path
    out: Path
    format: str | None = None
    state: tuple[str, ...] = ()
    action: str | None = None
    cameras: tuple[str, ...] = ()
    rate_hz: float | None = None
    size: int | None = None
    episodes: int | None = None
    robot: str | None = None
    chunk_frames: int = 16
    shard_frames: int | None = None
    options: LogOptions = field(default_factory=LogOptions)


@dataclass(frozen=True)
class Sample:
    """A few pictures of one episode by the store's camera names, and its numbers, for a first look."""

    name: str
    images: dict[str, UInt8[np.ndarray, "_ _ _ 3"]]
    times: np.ndarray
    states: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class ImportPlan:
    """Everything known before a store is written. `notes`: what the user should know. `bytes_estimate`: what the
    store will take, from compressing the samples."""

    settings: ImportSettings
    converter: Converter
    survey: Survey
    spec: StoreSpec
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    bytes_estimate: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImportReport:
    """What became of an import. `skipped`: why, by the log's episode. `split`: episodes cut where time has gaps."""

    out: Path
    episodes: int
    frames: int
    added: int
    already: int
    skipped: dict[str, str]
    split: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "out": str(self.out), "split": list(self.split), "notes": list(self.notes)}


def prepare(settings: ImportSettings, progress: Progress | None = None) -> ImportPlan:
    """Open the log, check the mapping, read every episode's numbers and a few pictures.

    `InputError`: nothing can be read, the mapping does not fit, or the log is slower than the rate asked for.
    """
    log = open_log(settings.source, settings.format, settings.options)
    mapping = _mapping(log, settings)
    names = tuple(log.episodes()[: settings.episodes])
    own, note = log_period(log, names)
    period = store_period(own, settings.rate_hz)
    sizes = {
        name: fitted(log.cameras[source].height, log.cameras[source].width, settings.size)
        for name, source in mapping.cameras.items()
    }
    converter = Converter(log, mapping, sizes, own, period)
    found = survey(converter, names, progress)
    found = replace(found, reasons={**log.broken, **found.reasons})
    if not found.frames:
        name, reason = next(iter(found.reasons.items()), ("-", "it has none"))
        raise InputError(f"No episode of {settings.source} can be read; episode {name}: {reason}.")
    samples = _samples(converter, found)
    robot, origin = settings.robot or log.robot or "unknown", _provenance(settings, log, converter)
    spec = describe_store(found, converter, robot, settings.chunk_frames, origin)
    shard = _shard(found, spec) if settings.shard_frames is None else settings.shard_frames
    spec = replace(spec, shard_frames=shard)
    return ImportPlan(
        settings, converter, found, spec, names, samples, _estimate(samples, found, spec), (note,) if note else ()
    )


def _mapping(log: Log, settings: ImportSettings) -> LogMapping:
    """What was asked for; with nothing said of state and action an export of ours is what it was, and any other log
    what its format suggests."""
    origin = log.origin() if isinstance(log, Exported) and not settings.state and settings.action is None else None
    if origin is not None:
        named = {name: source for name, source in origin.cameras.items() if source in log.cameras}
        return as_exported(origin, log.vectors, _cameras(log, settings.cameras) if settings.cameras else named)
    cameras, state = _cameras(log, settings.cameras), settings.state or log.suggestion
    if not state:
        raise InputError(
            f"Say what the state is with --state; the log has {', '.join(sorted(log.vectors)) or 'no vectors'}."
        )
    return declare(log.vectors, state, settings.action, cameras)


def run(plan: ImportPlan, stream: Stream, progress: Progress | None = None) -> ImportReport:
    """Write what the store does not hold yet, episode by episode; an interruption loses none that is written.

    `stream` converts names to `Converted` in order (`map(plan.converter.convert, names)`, or an executor's).
    `InputError`: the disk is too small, the store was made otherwise, or not a single episode could be read.
    """
    notes = list(plan.notes)
    with _writer(plan, notes) as writer:
        done = {str(writer.metadata(i).get("source", {}).get("episode")) for i in range(len(writer))}
        todo = [name for name in plan.survey.frames if name not in done]
        _check_room(plan, todo)
        skipped, split, before = dict(plan.survey.reasons), [], len(writer)
        try:
            for number, item in enumerate(stream(todo), 1):
                if item.reason:
                    skipped[item.name] = item.reason
                else:
                    writer.extend(item.episodes)
                if len(item.episodes) > 1:
                    split.append(item.name)
                if progress is not None:
                    progress(number, len(todo))
        finally:
            report = ImportReport(
                out=plan.settings.out,
                episodes=len(writer),
                frames=int(writer.lengths().sum()),
                added=len(writer) - before,
                already=before,
                skipped=skipped,
                split=tuple(split),
                notes=tuple(notes),
            )
            write_json(plan.settings.out / REPORT, report.to_json())
        if not len(writer):
            name, reason = next(iter(skipped.items()))
            raise InputError(
                f"Not one of the {len(skipped)} episodes of {plan.settings.source} could be read; episode {name}: "
                f"{reason}. All reasons are in {plan.settings.out / REPORT}."
            )
    return report


def _writer(plan: ImportPlan, notes: list[str]) -> ZarrWriter:
    """A new store, or the one that an earlier run of the same import began."""
    out, wanted = plan.settings.out, plan.spec
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        _check_room(plan, list(plan.survey.frames))
        return ZarrStore.create(out, wanted)
    writer = ZarrStore.append_to(out)
    try:
        there, asked = dict(writer.spec.provenance.get("recipe", {})), dict(wanted.provenance["recipe"])
        if there.pop("fingerprint", None) != asked.pop("fingerprint", None):
            notes.append("the log's files have changed since the store was begun; only new episodes are added")
        different = [
            f"{key} {there.get(key)!r} there, {asked.get(key)!r} asked"
            for key in sorted(there.keys() | asked.keys())
            if there.get(key) != asked.get(key)
        ]
        if writer.spec.cameras != wanted.cameras:
            different.append(f"pictures {dict(writer.spec.cameras)} there, {dict(wanted.cameras)} asked")
        if writer.spec.robot != wanted.robot:
            different.append(f"robot {writer.spec.robot!r} there, {wanted.robot!r} asked")
        if different:
            raise InputError(f"{out} was imported differently ({'; '.join(different)}); use another output path.")
        beyond = [
            name
            for kind in ("state", "action")
            for name, low, high, least, most in zip(
                *(getattr(writer.spec, f"{kind}_{part}") for part in ("names", "low", "high")),
                *(getattr(wanted, f"{kind}_{part}") for part in ("low", "high")),
                strict=True,
            )
            if least < low - 1e-6 or most > high + 1e-6
        ]
        if beyond:
            notes.append(
                f"the log now reaches beyond the bounds that the store was begun with ({', '.join(beyond)}), and "
                "`data validate` will say so; to have wider ones, import all of it into a new store"
            )
    except BaseException:
        writer.close()
        raise
    return writer


def _check_room(plan: ImportPlan, todo: Sequence[str]) -> None:
    """`InputError` when the disk cannot take what is still to be written."""
    frames = sum(sum(plan.survey.frames[name]) for name in todo)
    need = plan.bytes_estimate * frames // max(plan.survey.total, 1)
    folder = plan.settings.out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"{frames} frames will take about {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; make "
            "pictures smaller with --size, take fewer --episodes or --camera, or choose another disk."
        )


def _samples(converter: Converter, found: Survey) -> tuple[Sample, ...]:
    """A few pictures of episodes spread over the log; those whose pictures cannot be read are passed over."""
    names = list(found.frames)
    samples: list[Sample] = []
    order = dict.fromkeys([names[i * (len(names) - 1) // max(_SAMPLES - 1, 1)] for i in range(_SAMPLES)])
    reason = ""
    for name in [*order, *(n for n in names[:20] if n not in order)]:
        if len(samples) == min(_SAMPLES, len(names)):
            break
        try:
            part = converter.numbers(name)[0]
            # Neighbours, as a chunk holds them: they tell how well the pictures compress.
            middle = max((len(part.rows) - 16) // 2, 0)
            images = converter.pictures(name, [part.rows[middle : middle + 16]])[0]
        except InputError as error:
            reason = reason or f"episode {name}: {first_line(error)}"
            continue
        samples.append(Sample(name, images, part.times, part.states, part.actions))
    if not samples:
        raise InputError(f"No pictures can be read; {reason}.")
    return tuple(samples)


def _estimate(samples: Sequence[Sample], found: Survey, spec: StoreSpec) -> int:
    """Bytes of the store, from the samples compressed as the store compresses."""
    from numcodecs import Zstd

    codec, total, frames = Zstd(level=1), 0, 0
    for sample in samples:
        for images in sample.images.values():
            total += len(codec.encode(np.ascontiguousarray(images)))
        frames += len(next(iter(sample.images.values())))
    numbers = 8 + 4 * (len(spec.state_names) + len(spec.action_names))
    return int(found.total * (total / frames + numbers))


def _shard(found: Survey, spec: StoreSpec) -> int:
    """Frames in a file: 0 (a file a chunk) unless that makes very many files; then as many as most episodes have."""
    lengths = [length for parts in found.frames.values() for length in parts]
    chunk, arrays = spec.chunk_frames, len(spec.cameras) + 3
    if arrays * sum(-(-length // chunk) for length in lengths) <= _MANY_FILES:
        return 0
    frame = max(3 * height * width for height, width in spec.cameras.values())
    wanted = min(int(np.median(lengths)), _SHARD_BYTES // frame)
    shard = max(-(-wanted // chunk), 1) * chunk
    return shard if shard > chunk else 0


def _cameras(log: Log, texts: Sequence[str]) -> dict[str, str]:
    """The store's camera names to the log's. A name not given is the last word of the log's."""
    if not log.cameras:
        raise InputError(
            "The log has no pictures; a store needs at least one camera. Where a simulator's states alone were logged, "
            "its pictures are drawn first: robosuite's by robomimic's dataset_states_to_obs."
        )
    chosen: dict[str, str] = {}
    for text in texts or log.cameras:
        name, equals, source = text.partition("=")
        source = source if equals else text
        if source not in log.cameras:
            raise unknown_name("camera in the log", source, log.cameras)
        short = re.sub(r"_(image|rgb)$", "", re.split(r"[./]", source)[-1])
        name = re.sub(r"[^A-Za-z0-9_-]", "_", name if equals else short)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", source) if not name or name in chosen else name
        if name in chosen:
            raise InputError(f"Two cameras would be named {name!r}; name them with --camera NAME={source}.")
        chosen[name] = source
    return chosen


def _provenance(settings: ImportSettings, log: Log, converter: Converter) -> dict[str, Any]:
    return {
        "command": "vjepa-mpc data import",
        "version": __version__,
        "commit": commit(),
        "recipe": {
            "source": str(settings.source),
            "format": log.format,
            **converter.mapping.describe(),
            "log_rate_hz": round(1 / converter.log_period_s, 6),
            "rate_hz": round(1 / converter.period_s, 6),
            "size": settings.size,
            "fingerprint": fingerprint(log, settings.source),
        },
    }
