"""Trials of one experiment -> the curves of a metric, with the seams of restores, as strict JSON."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.lease_objects import was_restored
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each
from airflow_tune_restore.views.columns import MAX_NAMES, RAY_FIELDS
from airflow_tune_restore.views.downsample import choose_points
from airflow_tune_restore.views.result_curve import Curve, Limits, Point, read_curve
from airflow_tune_restore.views.seams import Seam, Seams
from airflow_tune_restore.views.showable import as_iso
from airflow_tune_restore.views.shown import ShownExperiment

MAX_TRIALS, MAX_POINTS = 50, 500

_READ_BYTES, _LEAST_READ = 512 * 1024**2, 32 * 1024**2
_DECODED_BYTES, _LEAST_DECODED = 128 * 1024**2, 4 * 1024**2
"""Of the files of all trials together, and of one file however many they are."""


def show_curves(
    store: ObjectStore,
    shown: ShownExperiment,
    seams: Seams,
    *,
    trial_ids: Sequence[str],
    metric: str = "",
    address: str = "",
) -> dict[str, Any]:
    """Return the curves of a metric (`a/b` for nested ones) of one to `MAX_TRIALS` trials.

    Without a metric it is that of the experiment.

    Iterations of a curve grow strictly. A value of None is a NaN or infinity: a gap. Rows without the
    metric are no points. `time` and `clock` may lack a number, or go back. A seam lies before the point
    at its index, which is never the first; one that no point follows, or comes before, is left out.

    Raises:
        InvalidInputError: If there are no trials or too many, or if one is unknown.
    """
    metric = metric or shown.metric or ""
    trial_ids = list(dict.fromkeys(trial_ids))
    if not 1 <= len(trial_ids) <= MAX_TRIALS:
        raise InvalidInputError(
            f"Curves are shown for 1 to {MAX_TRIALS} trials at a time, not {len(trial_ids)}. Choose "
            "other trials."
        )
    numbers = [shown.number_of(store.uri, trial_id) for trial_id in trial_ids]
    trials = [shown.trials[number] for number in numbers]
    limits = _limits(len(trials))
    curves = for_each(
        lambda trial: read_curve(store, trial.trial_dir, metric, limits),
        trials,
    )
    found, problem = _find_seams(store, shown, seams, address or store.uri, trial_ids)
    metrics = dict.fromkeys(name for curve in curves for name in curve.metrics)
    return {
        "metric": printable(metric),
        "metrics": sorted(metrics, key=lambda name: name in RAY_FIELDS)[:MAX_NAMES],
        "trials": [
            {"trial_id": trial_id, **_show(curve, found.get(trial_id, []), problem)}
            for trial_id, curve in zip(trial_ids, curves, strict=True)
        ],
    }


def place_seams(points: Sequence[Point], seams: Sequence[Seam]) -> list[tuple[int, Seam]]:
    """Return the seams that lie between two points, with the number of the first point behind each."""
    iterations = [point.iteration for point in points]
    placed = ((bisect_right(iterations, seam.iteration), seam) for seam in seams)
    return [(index, seam) for index, seam in placed if 0 < index < len(points)]


def _limits(trials: int) -> Limits:
    return Limits(
        min(layout.MAX_RESULT_BYTES, max(_LEAST_READ, _READ_BYTES // trials)),
        min(Limits().decoded_bytes, max(_LEAST_DECODED, _DECODED_BYTES // trials)),
    )


def _find_seams(
    store: ObjectStore,
    shown: ShownExperiment,
    seams: Seams,
    address: str,
    trial_ids: Sequence[str],
) -> tuple[dict[str, list[Seam]], str]:
    """Return the seams by trial, and what is wrong: a store that fails costs the seams alone."""
    if not was_restored(shown.entries):
        return {}, ""
    try:
        return seams.of(store, address, trial_ids), ""
    except TuneRestoreError as error:
        return {}, printable(f"restores of it are not marked: {error}")


def _show(curve: Curve, seams: Sequence[Seam], problem: str) -> dict[str, Any]:
    points = curve.points
    # with numbers of rows in the place of iterations, no iteration of a plan has a place
    placed = [] if curve.numbered else place_seams(points, seams)
    neighbours = {index + side for index, _ in placed for side in (-1, 0)}
    shown = choose_points(
        [point.iteration for point in points],
        [point.value for point in points],
        MAX_POINTS,
        neighbours,
    )
    index_of = {number: index for index, number in enumerate(shown)}
    chosen = [points[number] for number in shown]
    return {
        "iteration": [point.iteration for point in chosen],
        "time": [point.time for point in chosen],
        "clock": [point.clock for point in chosen],
        "value": [point.value for point in chosen],
        "seams": [
            {
                "iteration": seam.iteration,
                "index": index_of[index],
                "restore_id": printable(seam.restore_id),
                "at": as_iso(seam.at),
            }
            for index, seam in placed
        ],
        "rows": curve.rows,
        "problem": "; ".join(filter(None, [curve.problem, problem])),
    }
