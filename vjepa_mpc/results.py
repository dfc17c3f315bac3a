"""What episodes came to: kept as lines of a file, and summed up with intervals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vjepa_mpc.core.files import write_text
from vjepa_mpc.episodes import EpisodeResult
from vjepa_mpc.intervals import proportion, upper_bound
from vjepa_mpc.robots.task import Task


def read_log(log: Path | None) -> dict[int, EpisodeResult]:
    """Episodes of an earlier run. Lines that a crash cut short are removed from the file, lest the next one
    be written onto them."""
    done: dict[int, EpisodeResult] = {}
    if log is None or not log.is_file():
        return done
    text = log.read_text(encoding="utf-8", errors="replace")
    whole = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            frozen: dict[str, Any] = {}
            for key, value in row.items():
                frozen[key] = tuple(value) if isinstance(value, list) else value
            result = EpisodeResult(**frozen)
        except (ValueError, TypeError, AttributeError):
            continue
        done[result.index] = result
        whole.append(line + "\n")
    if "".join(whole) != text:
        write_text(log, "".join(whole))
    return done


def summarise(results: Sequence[EpisodeResult], task: Task | None = None) -> dict[str, Any]:
    """Success at first hit and held with Wilson intervals, final distance, latency, evaluations a step.

    With the `task` also steps to success, and how many decisions took longer than its control period.
    """
    n = len(results)
    times = sorted(value for result in results for value in result.milliseconds)
    steps = sum(len(result.distances) for result in results)
    summary: dict[str, Any] = {"episodes": n}
    for name in ("hit", "held"):
        summary[name] = proportion(sum(getattr(result, name) for result in results), n)
    judged = [result for result in results if result.model_reached is not None]
    summary |= {
        "final_distance_median_m": statistics.median(result.distances[-1] for result in results),
        "milliseconds_median": statistics.median(times),
        "milliseconds_p95": times[min(len(times) - 1, int(0.95 * len(times)))],
        "evaluations_per_step": sum(result.evaluations for result in results) / steps,
        "model_says_reached": {
            "count": len(judged),
            "of_which_held": sum(result.held for result in judged),
        },
    }
    if any(result.together > 1 for result in results):  # a decision is everyone's: so long each has waited for it
        shares = [value / result.together for result in results for value in result.milliseconds]
        summary["milliseconds_each_median"] = statistics.median(shares)
    entered = sum(result.intrusion > 0 for result in results)
    summary["violations"] = {
        "count": entered, "rate": entered / n, "upper_95": upper_bound(entered, n),
        "deepest_m": max(result.intrusion for result in results),
    }  # fmt: skip
    if task is not None:
        late = sum(value > 1e3 * task.spec.control_period_s for value in times)
        reached = [steps_to_success(result, task) for result in results]
        summary |= {
            "steps_to_hit_median": _median([hit for hit, _ in reached]),
            "steps_to_hold_median": _median([hold for _, hold in reached]),
            "deadline_misses": {"count": late, "rate": late / len(times), "period_s": task.spec.control_period_s},
        }
    return summary


def steps_to_success(result: EpisodeResult, task: Task) -> tuple[int | None, int | None]:
    """After how many steps an episode first was within the task's radius, and, where it held, from when on it stayed
    there; None where it never was, or did not hold."""
    inside = [distance <= task.success_radius_m for distance in result.distances]
    first = inside.index(True) + 1 if True in inside else None
    if not result.held:
        return first, None
    left = max((step for step, within in enumerate(inside) if not within), default=-1)
    return first, left + 2


def _median(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None
