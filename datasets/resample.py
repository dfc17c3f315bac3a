"""Rows of a log brought to a control rate by their time stamps."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

_GAP = 1.5  # a step longer than this many periods is a gap: something was not recorded


def sample_rows(times: Float64[np.ndarray, "n"], log_period_s: float, period_s: float) -> list[Int64[np.ndarray, "_"]]:
    """The rows to keep, one array for every stretch without a gap.

    `log_period_s`: seconds between the log's rows; `period_s`: seconds wanted, not shorter. Within a stretch the
    row nearest to each point of an even grid is taken as it is: nothing is interpolated, so that state and
    picture stay those of one moment, and the times kept are the rows' own. Where a step is longer than 1.5
    periods (of the log or wanted, the longer one) the stretch ends and a new grid begins.
    """
    breaks = np.flatnonzero(np.diff(times) > _GAP * max(log_period_s, period_s)) + 1
    return [_on_grid(times, rows, log_period_s, period_s) for rows in np.split(np.arange(len(times)), breaks)]


def _on_grid(
    times: Float64[np.ndarray, "n"], rows: Int64[np.ndarray, "_"], log_period_s: float, period_s: float
) -> Int64[np.ndarray, "_"]:
    if not len(rows) or period_s <= 1.02 * log_period_s:  # the log's own rate: every row
        return rows
    own = times[rows]
    steps = int((own[-1] - own[0] + 0.5 * log_period_s) / period_s)
    grid = own[0] + period_s * np.arange(steps + 1)
    right = np.clip(np.searchsorted(own, grid), 1, max(len(own) - 1, 1))
    right = np.minimum(right, len(own) - 1)
    left = np.maximum(right - 1, 0)
    return rows[np.unique(np.where(grid - own[left] <= own[right] - grid, left, right))]
