"""Stores made from stores: several merged into one, one split in two. A new store is whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vjepa_mpc import __version__
from vjepa_mpc.core.errors import InputError
from vjepa_mpc.core.files import fsync_folder
from vjepa_mpc.core.settings import commit
from vjepa_mpc.datasets.episode import Episode, StoreSpec
from vjepa_mpc.datasets.store import ZarrStore, ZarrWriter

Progress = Callable[[int, int], None]
RECORDING = "recording"  # the key under which a copy's episode says what it was cut from

# What merged stores must agree on: their numbers and pictures would mean different things otherwise.
_SAME = (
    *("robot", "cameras", "state_model"),
    *("state_names", "state_units", "state_periodic", "action_names", "action_units"),
)


@contextlib.contextmanager
def whole_store(out: Path, spec: StoreSpec) -> Iterator[ZarrWriter]:
    """Yield the writer of a new store; it appears at `out` when the block succeeds, and not at all otherwise."""
    if out.exists():
        raise InputError(f"{out} already exists; choose another path.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with ZarrStore.create(partial, spec) as writer:
            yield writer
        os.replace(partial, out)
        fsync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def merge(stores: Sequence[ZarrStore], out: Path, progress: Progress | None = None) -> tuple[int, int]:
    """Write the episodes of several stores into one, in order; returns how many, and how many were left out
    because an earlier one has the same content.

    Bounds become the widest. `InputError`: the stores differ in robot, cameras, names, units, state model or rate.
    """
    spec = _merged_spec(stores)
    seen: set[str] = set()
    total, done = sum(len(store) for store in stores), 0
    with whole_store(out, spec) as writer:
        for store in stores:
            for index in range(len(store)):
                episode = store.read(index)
                store.compare(index, episode)
                if (digest := episode.digest()) not in seen:
                    seen.add(digest)
                    writer.append(_from(episode, store, index, "merged_from"))
                done += 1
                if progress is not None:
                    progress(done, total)
        return len(writer), total - len(writer)


def split(
    store: ZarrStore, outs: tuple[Path, Path], fraction: float, seed: int, progress: Progress | None = None
) -> tuple[list[int], list[int]]:
    """Copy a store into two, `fraction` of it in the second; returns the episodes of each.

    What was cut from one recording (at gaps, or by mending) stays on one side; which one depends on the seed.
    `InputError` when there are fewer than two recordings, or the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise InputError(f"The second store's share must be between 0 and 1, got {fraction:g}.")
    for out in outs:  # both, before the first is written
        if out.exists():
            raise InputError(f"{out} already exists; choose another path.")
    if outs[0].absolute() == outs[1].absolute():
        raise InputError(f"Both stores would be {outs[0]}; name two.")
    groups: dict[str, list[int]] = {}
    for index in range(len(store)):
        groups.setdefault(recording(store, index), []).append(index)
    if len(groups) < 2:
        raise InputError(f"{store.path} holds {len(groups)} recordings; splitting needs at least two.")
    held = held_out(len(groups), fraction, seed)
    sides: tuple[list[int], list[int]] = ([], [])
    for number, indices in enumerate(groups.values()):
        sides[number in held].extend(indices)
    done = 0
    for out, indices, share in zip(outs, sides, (1 - fraction, fraction), strict=True):
        recipe = {"fraction": round(share, 6), "seed": seed}
        with whole_store(out, replace(store.spec, provenance=_provenance("split", [store], recipe))) as writer:
            for index in sorted(indices):
                writer.append(_from(store.read(index), store, index, "split_from"))
                done += 1
                if progress is not None:
                    progress(done, len(store))
    return sorted(sides[0]), sorted(sides[1])


def held_out(count: int, fraction: float, seed: int) -> set[int]:
    """`fraction` of `count` recordings, at least one and not all, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(count)
    return set(order[: min(max(round(fraction * count), 1), count - 1)].tolist())


def recording(store: ZarrStore, index: int) -> str:
    """What an episode was cut from: equal for two episodes of one recording, in whichever stores they are now.

    A log's episodes are known by the log's fingerprint, so that two logs whose episodes have the same names are told
    apart, and one log imported twice is not; without a log, the content tells. Copies carry it along (`RECORDING`).
    """
    note = store.metadata(index)
    if isinstance(note.get(RECORDING), str):
        return str(note[RECORDING])
    source, mended = note.get("source"), note.get("mended_from")
    if isinstance(source, Mapping) and "episode" in source:
        recipe = store.spec.provenance.get("recipe")
        log = recipe.get("fingerprint", "") if isinstance(recipe, Mapping) else ""
        return f"{log or _store_of(note)} {source['episode']}"
    if isinstance(mended, Mapping) and "episode" in mended:  # of a store mended before copies carried it along
        return f"{_store_of(note)} mended {mended['episode']}"
    return store.digest(index)


def _store_of(note: Mapping[str, Any]) -> str:
    """Where an episode of a merged store came from, by an older version's note; "" when there is none."""
    merged = note.get("merged_from")
    return str(merged.get("store", "")) if isinstance(merged, Mapping) else ""


def _merged_spec(stores: Sequence[ZarrStore]) -> StoreSpec:
    if len(stores) < 2:
        raise InputError("Merging needs at least two stores.")
    first = stores[0].spec
    for store in stores[1:]:
        for field in _SAME:
            here, there = getattr(first, field), getattr(store.spec, field)
            if here != there:
                raise InputError(f"{stores[0].path} has {field} {here!r}, {store.path} {there!r}: no merging these.")
        if abs(store.spec.control_period_s / first.control_period_s - 1) > 0.01:
            raise InputError(
                f"{stores[0].path} has {1 / first.control_period_s:.4g} observations a second, {store.path} "
                f"{1 / store.spec.control_period_s:.4g}: bring the logs to one rate when importing (--rate)."
            )
    bounds: dict[str, Any] = {}
    for kind in ("state", "action"):
        lows = [getattr(store.spec, f"{kind}_low") for store in stores]
        highs = [getattr(store.spec, f"{kind}_high") for store in stores]
        bounds[f"{kind}_low"] = tuple(map(min, zip(*lows, strict=True)))
        bounds[f"{kind}_high"] = tuple(map(max, zip(*highs, strict=True)))
    renderers = {store.spec.renderer for store in stores}
    renderer = first.renderer if len(renderers) == 1 else "several"
    return replace(first, **bounds, renderer=renderer, provenance=_provenance("merge", stores, {}))


def _provenance(command: str, stores: Sequence[ZarrStore], recipe: Mapping[str, Any]) -> dict[str, Any]:
    sources = [
        {"path": store.name, "content_hash": store.content_hash(), "provenance": dict(store.spec.provenance)}
        for store in stores
    ]
    return {
        "command": f"vjepa-mpc data {command}",
        "version": __version__,
        "commit": commit(),
        "recipe": dict(recipe),
        "sources": sources,
    }


def _from(episode: Episode, store: ZarrStore, index: int, word: str) -> Episode:
    origin = {"store": store.name, "episode": index}
    return replace(episode, metadata={**episode.metadata, RECORDING: recording(store, index), word: origin})
