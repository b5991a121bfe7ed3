"""Odd rows: what Ray reads, we read. A field that cannot be used costs its trial, never the file."""

import json
import math
import re
from datetime import timedelta

import pytest

from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.raw_row import MalformedStateError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.state import encode_state, parse_state
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import plan_night

ALL = ResumeFlags.from_flags(resume_errored=True)


def plan(*rows) -> RestorePlan:
    """Plan a restore of all trials; the plan can be written and read again."""
    store = MemoryStore()
    store.put(STATE_NAME, make_state(list(rows)))
    made = plan_night(store)
    assert RestorePlan.from_json(made.to_json()) == made
    return made


def failed(trial_id: str, **fields) -> list[str]:
    return make_row(trial_id, status="ERROR", **fields)


def with_fields(row: list[str], trial: dict | None = None, run: dict | None = None) -> list[str]:
    """Return a row with other fields; one that is `...` is left out."""
    documents = (json.loads(row[0]) | (trial or {}), json.loads(row[1]) | (run or {}))
    return [
        json.dumps({name: value for name, value in document.items() if value is not ...})
        for document in documents
    ]


TAG = "1_" + ",".join(f"setting_{n}=value_{n}" for n in range(400))


@pytest.mark.parametrize(
    ("trial", "run"),
    [
        pytest.param({"experiment_tag": TAG}, {"last_result": {"experiment_tag": TAG}}, id="a long tag"),
        pytest.param({"experiment_tag": None}, None, id="no tag"),
        pytest.param({"experiment_tag": "1_prompt=line\nbreak"}, None, id="a tag with a line break"),
        pytest.param({"max_failures": math.inf}, None, id="max_failures=inf"),
        pytest.param({"max_failures": "3"}, None, id="max_failures as text"),
        pytest.param({"max_failures": None}, None, id="max_failures=None"),
        pytest.param({"relative_logdir": "lr=0.1\\fold=2"}, None, id="a backslash in the directory"),
        pytest.param({"relative_logdir": "line\nbreak"}, None, id="a line break in the directory"),
        pytest.param({"relative_logdir": "\U0001fae8 new"}, None, id="a character newer than Python"),
        pytest.param({"relative_logdir": None}, None, id="never started"),
        pytest.param({"config": math.nan}, None, id="a config that is a number"),
        pytest.param({"evaluated_params": None}, None, id="no sampled parameters"),
        pytest.param({"something_new": {"of": ["a", "later", "Ray"]}}, None, id="a field of a later Ray"),
        pytest.param(None, {"num_failures": 1.0}, id="num_failures as a float"),
        pytest.param(None, {"num_failures": None}, id="num_failures=None"),
        pytest.param(None, {"error_filename": 7}, id="the name of the error is a number"),
        pytest.param(None, {"start_time": "soon"}, id="a start time as text"),
        pytest.param(None, {"start_time": math.nan}, id="a start time that is NaN"),
        pytest.param(None, {"last_result_time": None}, id="no time of the last result"),
        pytest.param(None, {"last_result_time": math.nan}, id="NaN as that time"),
        pytest.param(None, {"last_result_time": "now"}, id="text as that time"),
        pytest.param(None, {"last_result": None}, id="no last result"),
        pytest.param(None, {"last_result": {"done": "no", "time_this_iter_s": "1 s"}}, id="own metrics"),
        pytest.param(None, {"metric_analysis": []}, id="an analysis that is a list"),
    ],
)  # fmt: skip
def test_a_field_that_no_plan_needs_is_not_read(trial, run):
    odd = with_fields(failed("odd", last_result={"training_iteration": 2}), trial, run)
    made = plan(failed("even"), odd)
    assert {t.trial_id: t.action for t in made.trials} == dict.fromkeys(
        ("even", "odd"), TrialAction.RESUME
    )


@pytest.mark.parametrize("name", ["train" * 500, "my\ntrain", "größe"])
def test_a_trainable_may_have_any_name_that_a_command_line_takes(name):
    made = plan(*(with_fields(failed(trial), {"trainable_name": name}) for trial in ("a", "b")))
    assert made.trainable_name == name
    assert [trial.action for trial in made.trials] == [TrialAction.RESUME] * 2


@pytest.mark.parametrize(
    ("reported", "shown", "is_named"),
    [
        (1.0, 1, False),
        (2.5, 2, False),
        ("3", 0, True),
        (math.nan, 0, True),
        (math.inf, 0, True),
        (None, 0, True),
        (True, 0, True),
        (-1, 0, False),
        (10**400, 0, True),
        ([3], 0, True),
    ],
)
def test_a_trainable_may_report_its_own_iteration(reported, shown, is_named):
    row = failed("odd", last_result={"training_iteration": reported, "loss": 1.0})
    made = plan(failed("even"), row)
    assert [t.action for t in made.trials] == [TrialAction.RESUME] * 2
    trials = {t.trial_id: t for t in parse_state(make_state([row])).trials}
    assert trials["odd"].iteration == shown
    named = [w for w in made.warnings if "training_iteration of 1 trial (odd)" in w]
    assert bool(named) is is_named


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"relative_logdir": "../.."}, "leads outside"),
        ({"relative_logdir": ".."}, "leads outside"),
        ({"relative_logdir": ""}, "leads outside"),
        ({"relative_logdir": "/etc"}, "leads outside"),
        ({"relative_logdir": "a\\..\\..\\b"}, "leads outside"),
        ({"relative_logdir": ".tune_restore"}, "leads outside"),
        ({"relative_logdir": "nul\0"}, "leads outside"),
        ({"relative_logdir": "x" * 256}, "leads outside"),
        ({"relative_logdir": "é" * 200}, "leads outside"),
        ({"relative_logdir": "a\ud800"}, "leads outside"),
        ({"relative_logdir": 7}, "of type int"),
        ({"trainable_name": "nul\0"}, "name of its trainable"),
        ({"trainable_name": "\ud800"}, "name of its trainable"),
        ({"trainable_name": None}, "of type NoneType"),
    ],
)
def test_a_trial_that_names_something_unsafe_is_lost_alone(fields, reason):
    made = plan(failed("even"), with_fields(failed("odd"), fields))
    actions = {trial.trial_id: (trial.action, trial.reason) for trial in made.trials}
    assert actions["even"][0] is TrialAction.RESUME
    assert actions["odd"][0] is TrialAction.KEEP
    assert reason in actions["odd"][1]
    assert any("trial odd cannot be run" in warning for warning in made.warnings)
    assert made.trial("odd").trial_dir is None or "trainable_name" in fields


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trial_id": "../.."}, "trial id"),
        ({"trial_id": "*"}, "trial id"),
        ({"trial_id": "line\nbreak"}, "trial id"),
        ({"trial_id": 7}, "trial_id"),
        ({"trial_id": "row-1"}, "trial id"),
        ({"trial_id": "even"}, "another trial has the id"),
        ({"status": ...}, "missing required field `status`"),
    ],
)
def test_a_row_without_a_usable_id_is_lost_alone_and_written_back_unchanged(fields, reason):
    body = make_state([failed("even"), with_fields(failed("odd"), fields), failed("last")])
    state = parse_state(body)
    assert encode_state(state.rows.values(), state.runner, state.stats) == body
    even, odd, last = state.trials
    assert (even.unusable, last.unusable) == ("", "")
    assert (odd.trial_id, odd.status) == ("row-2", TrialStatus.ERROR)
    assert reason in odd.unusable
    made = plan(failed("even"), with_fields(failed("odd"), fields), failed("last"))
    assert {t.trial_id: t.action for t in made.trials} == {
        "even": TrialAction.RESUME,
        "row-2": TrialAction.KEEP,
        "last": TrialAction.RESUME,
    }


def test_a_row_that_cannot_be_read_is_reported_with_its_id():
    rows = [with_fields(failed("odd"), {"status": ...}), failed("even")]
    odd, even = parse_state(make_state(rows)).trials
    assert even.unusable == ""
    assert odd.unusable.endswith("its trial_id is odd")


@pytest.mark.parametrize("status", [None, "STOPPED", 7, "error", ["ERROR"], "x" * 300])
def test_a_trial_of_no_status_is_unfinished_as_ray_takes_it(status):
    made = plan(failed("even"), with_fields(failed("odd"), {"status": status}))
    assert made.trial("odd").action is TrialAction.RESUME
    assert made.trial("odd").status is TrialStatus.PENDING
    named = "status of 1 trial (odd) is not one of Ray's: they count as unfinished"
    assert [named in warning for warning in made.warnings].count(True) == 1


@pytest.mark.parametrize("value", [10**400, 1e300, "1e400", math.nan, [], None])
@pytest.mark.parametrize("name", ["_checkpoint_period", "_start_time", "_metric"])
def test_no_field_around_the_rows_keeps_a_scan_from_any_experiment(name, value):
    store = MemoryStore()
    store.put(f"team/even/{STATE_NAME}", make_state([failed("a")]))
    store.put(f"team/odd/{STATE_NAME}", make_state([failed("a")], **{name: value}))
    reports = scan(store, stale_after=timedelta(0), use_index=False)
    assert [report.health for report in reports] == [Health.ERRORED] * 2


LARGE = {"weights": [0.25] * 900_000, "prompt": "Be brief, please: [1, 2]. " * 100_000}
"""Seven megabytes."""


def test_a_large_config_with_a_nan_is_read_as_any_other():
    row = with_fields(failed("odd"), {"config": LARGE | {"limit": math.nan}})
    made = plan(failed("even"), row)
    assert {trial.action for trial in made.trials} == {TrialAction.RESUME}
    odd = parse_state(make_state([row])).trials[0]
    assert (odd.unusable, odd.resources) == ("", {"CPU": 1.0})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"blob": "x" * 17_000_000}, r"holds 170\d+ bytes"),
        ({"lists": [[]] * 2_000_000, "nan": math.nan}, "may hold 400"),
    ],
)
def test_a_row_that_would_take_too_much_memory_is_lost_alone(config, reason):
    made = plan(failed("even"), with_fields(failed("odd"), {"config": config}))
    assert made.trial("even").action is TrialAction.RESUME
    lost = made.trial("row-2")
    assert lost.action is TrialAction.KEEP
    assert re.search(reason, lost.reason)


def test_of_many_trials_that_are_lost_some_are_named_and_the_others_counted():
    store = MemoryStore()
    store.put(STATE_NAME, make_state([failed("even"), *([["{", "{}"]] * 100)]))
    warnings = read_experiment(store).warnings
    assert sum("cannot be run:" in warning for warning in warnings) == 20
    assert "80 more trials cannot be run" in warnings


def test_a_row_that_is_not_json_is_lost_alone():
    made = plan(failed("even"), ["{", "{}"], ["[]", "{}"])
    assert [t.action for t in made.trials if t.trial_id != "even"] == [TrialAction.KEEP] * 2


def test_metadata_that_cannot_be_read_cost_the_checkpoint_alone():
    made = plan(failed("even"), [failed("odd")[0], "{"])
    odd = made.trial("odd")
    assert odd.action is TrialAction.KEEP
    assert "allow_scratch" in odd.reason
    assert any("metadata of 1 trial (odd) cannot be read" in warning for warning in made.warnings)


def test_a_file_without_any_row_that_can_be_used_is_refused():
    with pytest.raises(MalformedStateError, match="trial id"):
        parse_state(make_state([with_fields(failed("odd"), {"trial_id": ".."})]))


def test_a_scan_names_an_odd_trial_and_goes_on():
    store = MemoryStore()
    store.put(
        f"team/exp/{STATE_NAME}",
        make_state([failed("even"), with_fields(failed("odd"), {"trial_id": 7})]),
    )
    (report,) = scan(store, stale_after=timedelta(0))
    assert report.health is Health.ERRORED
    assert "trial row-2 cannot be run" in report.reason
