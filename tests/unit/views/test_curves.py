"""Curves of trials with the seams of restores: what real Rays wrote, and what nobody should have."""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError, UnknownTrialError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.restore.choices import Strategy
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.views import result_curve
from airflow_tune_restore.views.curves import MAX_POINTS, MAX_TRIALS, place_seams, show_curves
from airflow_tune_restore.views.downsample import choose_points
from airflow_tune_restore.views.result_curve import Limits, Point, read_curve
from airflow_tune_restore.views.seams import Seam, Seams
from airflow_tune_restore.views.shown import ShownExperiments
from tests.support import FAILED, GOLDEN
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, night, start_night

REAL = sorted(GOLDEN.glob("ray-*/killed")) + sorted(path for path in FAILED.iterdir())


def curves(
    store: ObjectStore, *trial_ids: str, metric: str = "score", seams: Seams | None = None
) -> dict[str, Any]:
    shown, _ = ShownExperiments().read(store, store.uri)
    ids = trial_ids or [trial.trial_id for trial in shown.trials]
    found = show_curves(store, shown, seams or Seams(), metric=metric, trial_ids=ids)
    return json.loads(json.dumps(found, allow_nan=False, ensure_ascii=False).encode())


def curve(store: ObjectStore, metric: str = "score") -> dict[str, Any]:
    return curves(store, "bad", metric=metric)["trials"][0]


def rows_of(*iterations: float, **fields: Any) -> list[dict[str, Any]]:
    return [
        {
            "training_iteration": k,
            "score": 10 * k,
            "time_total_s": 1.5 * k,
            "timestamp": 1000 + k,
            **fields,
        }
        for k in iterations
    ]


def lines(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def made(body: bytes | None, **row: Any) -> MemoryStore:
    """Return an experiment with one trial that failed after iteration 2, of which it has a checkpoint."""
    store = MemoryStore()
    usual = {
        "status": "ERROR",
        "error": True,
        "checkpoint": True,
        "last_result": {"training_iteration": 2},
    }
    store.put(STATE_NAME, make_state([make_row("bad", **(usual | row)), make_row("done")]))
    store.put("dir_bad/checkpoint_000001/state.json", b"{}")
    if body is not None:
        store.put("dir_bad/result.json", body)
    return store


@pytest.mark.parametrize("directory", REAL, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_real_rays_wrote_is_a_curve(directory):
    store = open_store(str(directory))
    shown, _ = ShownExperiments().read(store, store.uri)
    for trial, found in zip(shown.trials, curves(store)["trials"], strict=True):
        body = directory / str(trial.trial_dir) / "result.json"
        rows = [json.loads(line) for line in body.open()] if body.exists() else []
        assert found["iteration"] == [row["training_iteration"] for row in rows]
        assert found["value"] == [row["score"] for row in rows]
        assert found["time"] == [row["time_total_s"] for row in rows]
        assert found["clock"] == [row["timestamp"] for row in rows]
        assert bool(found["problem"]) == (not rows)


def test_metrics_are_the_names_of_numbers_those_of_the_trial_first():
    rows = rows_of(1, 2, eval={"loss": 1.0, "name": "x"}, done=False, config={"lr": 1})
    found = curves(made(lines(rows)), "bad")
    assert found["metrics"] == [
        "score",
        "eval/loss",
        "training_iteration",
        "time_total_s",
        "timestamp",
    ]


def test_without_a_metric_it_is_that_of_the_experiment():
    found = curves(made(lines(rows_of(1, 2))), "bad", metric="")
    assert (found["metric"], found["trials"][0]["value"]) == ("score", [10, 20])


def test_a_nested_metric_has_the_name_that_ray_gives_it():
    rows = rows_of(1, 2, eval={"loss": 0.25})
    assert curve(made(lines(rows)), "eval/loss")["value"] == [0.25, 0.25]


def test_rows_without_the_metric_are_no_points_and_nan_is_a_gap():
    rows = rows_of(1, 2, 3, 4, 5)
    del rows[1]["score"]
    rows[2]["score"] = float("nan")
    rows[3]["score"] = float("inf")
    found = curve(made(lines(rows)))
    assert found["iteration"] == [1, 3, 4, 5]
    assert found["value"] == [10, None, None, 50]
    assert found["rows"] == 5


@pytest.mark.parametrize("odd", ["text", True, None, [1], {"a": 1}])
def test_a_metric_that_is_not_a_number_is_no_point(odd):
    found = curve(made(lines(rows_of(1, 2, score=odd))))
    assert found["value"] == []
    assert "none of its rows has the metric score" in found["problem"]


def test_a_number_that_no_float_holds_is_a_gap():
    body = lines(rows_of(1, 2)).replace(b'"score": 20', b'"score": 1' + b"0" * 400)
    assert curve(made(body))["value"] == [10, None]


@pytest.mark.parametrize(
    "line",
    [
        b'{"training_iteration": 9, "score": 9',
        b"[1, 2]",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"score": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_line_that_cannot_be_read_costs_itself_alone(line):
    found = curve(made(lines(rows_of(1, 2)) + line + b"\n" + lines(rows_of(3))))
    assert found["value"] == [10, 20, 30]
    assert "1 of its rows cannot be read" in found["problem"]


def test_the_line_that_a_killed_driver_cut_off_is_left_out():
    body = lines(rows_of(1, 2, 3))[:-20]
    assert curve(made(body))["iteration"] == [1, 2]


@pytest.mark.parametrize(
    ("reported", "kept"),
    [
        ([1, 2, 3, 2, 3, 4], [1, 2, 3, 4]),  # back to a checkpoint
        ([1, 2, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4, 5, 1, 2], [1, 2]),  # from the start again
        ([1, 2, 3, 7, 8, 9], [1, 2, 3, 7, 8, 9]),  # PBT: on from a trial that was further
        ([10, 20, 30, 15, 25], [10, 15, 25]),
    ],
)
def test_iterations_grow_and_the_newest_run_counts(reported, kept):
    rows = rows_of(*reported)
    for number, row in enumerate(rows):
        row["score"] = number
    found = curve(made(lines(rows)))
    assert found["iteration"] == kept
    assert found["value"][-1] == len(rows) - 1
    assert found["rows"] == len(rows)


@pytest.mark.parametrize("odd", [7, "x", None, float("nan")])
def test_without_iterations_that_grow_rows_are_counted(odd):
    rows = rows_of(*range(1, 6))
    for row in rows:
        row["training_iteration"] = odd
    found = curve(made(lines(rows)))
    assert found["iteration"] == [1, 2, 3, 4, 5]
    assert found["value"] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("body", "problem"), [(None, "no result.json"), (b"", "is empty"), (b"\n\n", "is empty")]
)
def test_a_trial_without_rows_says_so(body, problem):
    found = curve(made(body))
    assert problem in found["problem"]
    assert found["value"] == found["seams"] == []


def test_a_trial_that_never_started_says_so():
    store = made(None)
    store.put(STATE_NAME, make_state([make_row("bad", relative_logdir=None), make_row("done")]))
    assert curve(store)["problem"] == "it never started"


def test_a_large_file_covers_the_whole_run_with_fewer_rows():
    rows = [*rows_of(*range(1, 10_001)), *rows_of(10_001)]
    body = lines(rows)
    store = made(body)
    found = read_curve(store, "dir_bad", "score", Limits(decoded_bytes=len(body) // 10))
    assert found.rows < 1200
    assert [found.points[0].iteration, found.points[-1].iteration] == [1, 10_001]
    assert "one row in 11 counts" in found.problem


def test_a_file_beyond_all_limits_is_named_and_not_read():
    store = made(lines(rows_of(1)))
    found = read_curve(store, "dir_bad", "score", Limits(read_bytes=10))
    assert not found.points
    assert "is too large" in found.problem


def test_however_many_rows_there_are_few_are_kept(monkeypatch):
    monkeypatch.setattr(result_curve, "_KEPT_ROWS", 100)
    found = read_curve(made(lines(rows_of(*range(1, 5001)))), "dir_bad", "score", Limits())
    assert len(found.points) <= 101
    assert found.points[-1].iteration == 5000


def test_one_line_without_an_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(result_curve.bounded_json, "MAX_DOCUMENT_BYTES", 1000)
    body = b'{"score": "' + b"x" * 100_000
    found = read_curve(made(body), "dir_bad", "score", Limits())
    assert "1 of its rows cannot be read" in found.problem


def test_names_of_metrics_are_shown_as_text():
    rows = rows_of(1, **{"<b>\u202e\n": 1.0})
    assert all(map(is_printable, curves(made(lines(rows)), "bad")["metrics"]))


def test_a_restored_trial_shows_both_parts_and_the_seam():
    store = made(lines(rows_of(1, 2)))
    plan = start_night(store, "r1")
    assert plan.trial("bad").iteration == 2
    leave_attempt(store, plan, "bad", iteration=4)
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3, 4)))
    while_it_runs = curve(store)
    commit_restore(store, "r1")
    found = curve(store)

    assert found["iteration"] == [1, 2, 3, 4]
    [seam] = found["seams"]
    assert (seam["iteration"], seam["index"], seam["restore_id"]) == (2, 2, "r1")
    assert seam["at"]
    assert while_it_runs["seams"] == found["seams"]


def test_a_run_of_all_trials_leaves_a_seam_in_each_that_it_resumed():
    store = made(lines(rows_of(1, 2)))
    plan = start_night(store, "r1", strategy=Strategy.WHOLE_EXPERIMENT)
    assert plan.is_whole_experiment
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3)))
    before = curve(store)["seams"]
    claim_attempt(store, plan, layout.WHOLE_EXPERIMENT, RunnerSettings(trainable="m:train"))
    assert not before
    assert [seam["restore_id"] for seam in curve(store)["seams"]] == ["r1"]


def test_a_restarted_trial_has_no_seam():
    store = made(lines(rows_of(1, 2)))
    flags = ResumeFlags.from_flags(restart_errored=True)
    plan = start_night(store, "r1", flags=flags)
    leave_attempt(store, plan, "bad", iteration=4)
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3, 4)))
    assert curve(store)["seams"] == []


def test_two_restores_from_one_checkpoint_are_two_seams_if_both_ran():
    store = made(lines(rows_of(1, 2)))
    night(store, "r1")
    start_night(store, "r2")  # no runner of it has started
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3)))
    assert [seam["restore_id"] for seam in curve(store)["seams"]] == ["r1"]


def test_a_later_restore_takes_the_seams_of_the_rows_that_it_replaced():
    store = made(lines(rows_of(1, 2)))
    failed = {"status": "ERROR", "error": True, "checkpoint": True}
    for number, restore_id in enumerate(("r1", "r2"), 1):  # both fail behind the same checkpoint
        plan = start_night(store, restore_id)
        result = {"training_iteration": 3}
        row = make_row("bad", last_result=result, last_result_time=1000.0 * number, **failed)
        leave_attempt(store, plan, "bad", row, result="failed", iteration=3)
        commit_restore(store, restore_id)
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3)))
    assert [seam["restore_id"] for seam in curve(store)["seams"]] == ["r2"]


def test_a_restore_that_went_back_behind_an_earlier_one_ends_its_seam():
    store = made(lines(rows_of(1, 2)))
    night(store, "r1", iteration=5)
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3, 4, 5)))
    seams = Seams()
    assert [
        seam["iteration"] for seam in curves(store, "bad", seams=seams)["trials"][0]["seams"]
    ] == [2]
    went_back = json.loads(store.get(layout.plan_key("r1")))
    went_back["restore_id"] = "r2"
    next(row for row in went_back["trials"] if row["trial_id"] == "bad")["iteration"] = 1
    store.put(layout.plan_key("r2"), json.dumps(went_back).encode())
    store.put(layout.commit_key("r2"), store.get(layout.commit_key("r1")))
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3, 4, 5, 2, 3, 4)))
    assert [seam["restore_id"] for seam in curve(store)["seams"]] == ["r2"]


def test_no_seam_lies_before_the_first_or_behind_the_last_point():
    points = [Point(k, None, None, 1.0) for k in (3, 5, 7)]
    seams = [Seam(k, f"r{k}", None) for k in (1, 2, 3, 4, 5, 6, 7, 9)]
    placed = [(index, seam.iteration) for index, seam in place_seams(points, seams)]
    assert placed == [(1, 3), (1, 4), (2, 5), (2, 6)]


def test_a_seam_has_both_its_neighbours_among_few_points():
    store = made(lines(rows_of(1, 2)))
    night(store, "r1")
    store.put("dir_bad/result.json", lines(rows_of(*range(1, 5001))))
    found = curve(store)
    assert len(found["iteration"]) <= MAX_POINTS
    [seam] = found["seams"]
    assert found["iteration"][seam["index"] - 1 : seam["index"] + 1] == [2, 3]
    assert found["iteration"][-1] == 5000


@pytest.mark.parametrize("body", [b"{}", b"{", b"\xff"])
def test_an_unreadable_plan_costs_its_seams_alone(body):
    store = made(lines(rows_of(1, 2)))
    night(store, "r1")
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3)))
    store.put(layout.plan_key("r0"), body)
    assert [seam["restore_id"] for seam in curve(store)["seams"]] == ["r1"]


def test_what_a_finished_restore_did_is_read_once():
    store, seams = made(lines(rows_of(1, 2))), Seams()
    night(store, "r1")
    store.put("dir_bad/result.json", lines(rows_of(1, 2, 3)))
    first = curves(store, "bad", seams=seams)
    store.put(layout.plan_key("r1"), b"never written again")
    assert curves(store, "bad", seams=seams) == first


@pytest.mark.parametrize("count", [0, MAX_TRIALS + 1])
def test_too_many_trials_at_once_are_refused(count):
    store = made(None)
    shown, _ = ShownExperiments().read(store, store.uri)
    with pytest.raises(InvalidInputError, match="1 to 50"):
        show_curves(
            store, shown, Seams(), metric="x", trial_ids=[f"t{number}" for number in range(count)]
        )


def test_an_unknown_trial_is_refused():
    with pytest.raises(UnknownTrialError):
        curves(made(None), "../../etc")


VALUES = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    values=st.lists(VALUES, max_size=300),
    most=st.integers(3, 60),
    keep=st.sets(st.integers(-5, 310)),
)
def test_few_points_are_chosen_among_them_the_ends_and_those_to_keep(values, most, keep):
    gaps = sum(b is None and a is not None for a, b in zip([0.0, *values], values, strict=False))
    chosen = choose_points(range(len(values)), values, most, keep)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(len(values)))
    if len(values) <= most:
        assert len(chosen) == len(values)
        return
    kept = {0, len(values) - 1} | {i for i in keep if 0 <= i < len(values)}
    assert kept <= set(chosen)
    assert len(chosen) <= max(most, len(kept) + gaps)


def test_a_peak_stays():
    values = [0.0] * 10_000
    values[5_432] = 1.0
    assert 5_432 in choose_points(range(10_000), values, MAX_POINTS)


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ROW = st.dictionaries(
    st.sampled_from(["training_iteration", "score", "time_total_s", "timestamp", "other"]),
    ANY | st.dictionaries(st.text(max_size=3), ANY, max_size=2),
)


@given(rows=st.lists(ROW | ANY, max_size=30))
def test_whatever_rows_hold_the_answer_is_strict_json_with_an_axis_that_grows(rows):
    found = curve(made(lines(rows)))
    axis = found["iteration"]
    assert all(a < b for a, b in pairwise(axis))
    assert len(axis) == len(found["value"]) == len(found["time"]) == len(found["clock"])
    assert all(value is None or type(value) in (int, float) for value in found["value"])
