"""Sweeps that end in odd ways, and odd places of them."""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.run_tune_sweep import RunTuneSweepOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row, make_state
from tests.support.records import leave_outcome

BAD = make_row("bad", status="ERROR", last_result={"training_iteration": 2})


@pytest.fixture
def place(tmp_path):
    return tmp_path / "sweeps" / "exp"


def run(place, try_number=1, run_id="run-1", **arguments):
    given = {"entrypoint": "python sweep.py", "trainable": "a:b", **arguments}
    operator = RunTuneSweepOperator(task_id="sweep", experiment="{{ place }}", **given)
    operator.experiment = str(place)  # as Airflow renders it
    return operator.execute(make_context(run_id=run_id, try_number=try_number, max_tries=3))


def test_trials_that_fail_fast_cut_short_are_restored_with_the_one_that_failed(place, launcher):
    cut = make_row("cut", last_result={"training_iteration": 3, "done": False})

    def fail_fast(request):
        rows, state = [BAD, cut], {"_fail_fast": True, "_has_errored": True}
        make_experiment(place, rows, total_samples=2, live=["cut"], **state)
        leave_outcome(open_store(str(place)), request, "finished")

    launcher.on_start = fail_fast
    left = r"0 of 2 trials finished, and 2 did not: bad \(ERROR\); cut \(cut short by fail_fast\)"
    with pytest.raises(AirflowException, match=left):
        run(place)
    planned = []

    def restore(request):
        planned.append(request.restore_id)
        leave_outcome(open_store(str(place)), request, "interrupted", error="stopped")

    launcher.on_start = restore
    with pytest.raises(AirflowException, match="stopped"):
        run(place, 2)
    plan = read_plan(open_store(str(place)), planned[0])
    assert [trial.trial_id for trial in plan.to_run] == ["bad", "cut"]


@pytest.mark.parametrize(
    "rendered",
    ["", " ", "None", "/", "s3://bucket", "s3://bucket/", "s3://c@b/sweeps/", "/sweeps/ "],
)
def test_a_template_that_renders_to_nothing_makes_no_experiment_of_the_place_above(
    rendered, launcher
):
    for options in ({}, {"launcher": "kubernetes", "image": "i"}):
        with pytest.raises(AirflowFailException, match="does not end in the name of an experiment"):
            run(rendered, **options)
    assert launcher.requests == []


def test_a_mapping_that_a_template_renders_to_text_is_no_trainable_to_check(place, launcher):
    launcher.refusal = InvalidInputError("it was checked")

    def finish(request):
        make_experiment(place, [make_row("a")])
        leave_outcome(open_store(str(place)), request, "finished")

    launcher.on_start = finish
    operator = RunTuneSweepOperator(
        task_id="sweep", entrypoint="x", experiment=str(place), trainable="{{ params.x }}"
    )
    operator.trainable = "{'train': 'a:b'}"
    assert operator.execute(make_context())["trials_run"] == 1
    assert launcher.checked == []


@pytest.mark.parametrize(
    ("trainable", "checks"), [("a:b", True), ({"train": "a:b"}, False), ("{'t': 'a:b'}", False)]
)
def test_where_the_worker_has_no_code_the_runner_checks_the_trainable(trainable, checks):
    given = {"task_id": "sweep", "entrypoint": "x", "experiment": "/x/exp", "trainable": trainable}
    for launcher in ({"launcher": "ray"}, {"launcher": "kubernetes", "image": "i"}):
        assert RunTuneSweepOperator(**given, **launcher).runner_settings().checks is checks
    assert RunTuneSweepOperator(**given).runner_settings().checks is False


def test_a_sweep_that_another_restore_has_finished_is_a_success(place, launcher):
    def leave(request):
        make_experiment(place, [BAD])
        leave_outcome(open_store(str(place)), request, "failed", error="the exit code was 1")

    launcher.on_start = leave
    with pytest.raises(AirflowException, match=r"bad \(ERROR\)"):
        run(place)

    def heal(request):
        store = open_store(str(place))
        healed = make_row("bad", last_result={"training_iteration": 4, "done": True})
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        store.put(key, make_state([healed]))
        leave_outcome(store, request, "finished")

    launcher.on_start = heal
    run(place, run_id="another", stale_after=0)
    launcher.on_start = None
    assert run(place, 2)["failed"] == []
