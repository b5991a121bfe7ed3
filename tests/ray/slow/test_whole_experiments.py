"""One run of all trials, tasks that follow it, and samples that were never drawn: with real Ray."""

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from tests.support.airflow import home as airflow_home  # noqa: F401  imported before any of Airflow

# isort: split
from airflow_tune_restore.experiments.read import read_base, read_experiment
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore import follow
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    RetryAction,
)
from tests.support import ROOT
from tests.support.airflow.context import make_context
from tests.support.experiments.failed import TRAINABLES, Gate
from tests.support.ray.real_restore import TRAINABLE_ENV
from tests.support.waiting import PATIENCE_SECONDS, eventually

ENV = {**TRAINABLE_ENV, "TUNE_TEST_HEALED": "1", "PYTHONPATH": ROOT.as_posix()}
EVERY = [1, 2, 3, 4, 5, 6]


class Task(threading.Thread):
    """One mapped task, at work beside the others."""

    def __init__(self, item: dict, index: int, **env: str) -> None:
        super().__init__(daemon=True)
        self.context = make_context(map_index=index)
        self.operator = RestoreTrialOperator(
            task_id="trial",
            trial=item,
            trainable=TRAINABLES["limited"],
            env={**ENV, **env},
        )
        self.result = self.error = None

    def run(self) -> None:
        try:
            self.result = self.operator.execute(self.context)
        except AirflowException as error:
            self.error = error


def plan(experiment: Path, **arguments) -> tuple[list[dict], list[dict]]:
    context = make_context()
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=str(experiment),
        resume_errored=True,
        stale_after=0,
        **arguments,
    )
    return operator.execute(context), context["ti"].pushed["outcomes"]


def rows(experiment: Path) -> dict[str, list[int]]:
    """Return the iterations in result.json, by trial directory."""
    return {
        path.parent.name: [
            json.loads(line)["training_iteration"] for line in path.read_text().splitlines()
        ]
        for path in experiment.glob("*/result.json")
    }


def heartbeat(experiment: Path) -> dict | None:
    """Return the newest heartbeat of the run of all."""
    beats = sorted(experiment.glob(".tune_restore/*/whole/attempts/*/heartbeat.json"))
    return json.loads(beats[-1].read_text()) if beats else None


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_each_task_follows_and_ends_with_its_own_trial_and_can_stop_it_alone(copied, gate):
    experiment = copied("limited")
    items, restores = plan(experiment, strategy="whole_experiment")
    assert len(items) == 3
    tasks = [Task(item, i, **gate.env) for i, item in enumerate(items)]
    for task in tasks:
        task.start()
    stopped = tasks[0]
    mine = layout.progress_key(restores[0]["restore_id"], items[0]["trial_id"], 1)
    eventually(lambda: (experiment / mine).exists())
    stopped.operator.on_kill()
    stopped.join(PATIENCE_SECONDS)
    gate.open()
    for task in tasks:
        task.join(PATIENCE_SECONDS)
    assert [task.result and task.result["iteration"] for task in tasks] == [None, 6, 6]
    assert "was stopped at iteration 4" in str(stopped.error)
    assert len(list(experiment.glob(".tune_restore/*/whole/attempts/*"))) == 1

    retried = Task(items[0], 0)
    retried.start()
    retried.join(PATIENCE_SECONDS)
    assert retried.result["iteration"] == 6, retried.error
    (output,) = CommitRestoreOperator(task_id="commit", outcomes=restores).execute(make_context())
    assert output["failed"] == []
    assert {t.status for t in read_experiment(open_store(str(experiment))).trials} == {"TERMINATED"}
    assert all(found == EVERY for found in rows(experiment).values())


def test_the_run_outlives_the_task_that_started_it_and_a_killed_run_is_started_again(
    copied, monkeypatch, gate
):
    monkeypatch.setattr(follow, "QUIET_SECONDS", 45.0)  # nine beats, rather than a minute
    experiment = copied("limited")
    items, restores = plan(experiment, strategy="whole_experiment")
    tasks = [Task(item, i, **gate.env) for i, item in enumerate(items)]
    for task in tasks:
        task.start()
    eventually(
        lambda: len(list(experiment.glob(".tune_restore/*/trials/*/attempts/*/progress.json"))) >= 2
    )
    pid = heartbeat(experiment)["pid"]
    os.killpg(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    gate.open()
    for task in tasks:
        task.join(PATIENCE_SECONDS)
    assert [task.error for task in tasks] == [None, None, None]
    assert len(list(experiment.glob(".tune_restore/*/whole/attempts/*"))) == 2
    CommitRestoreOperator(task_id="commit", outcomes=restores).execute(make_context())
    assert all(found == EVERY for found in rows(experiment).values())


def test_a_run_that_is_started_again_counts_no_failure_twice(copied, monkeypatch, gate, tmp_path):
    monkeypatch.setattr(follow, "QUIET_SECONDS", 45.0)  # nine beats, rather than a minute
    experiment = copied("limited")
    items, restores = plan(experiment, strategy="whole_experiment")
    once = {"TUNE_TEST_FAILS_ONCE": str(tmp_path / "once")}
    tasks = [Task(item, i, **gate.env, **once) for i, item in enumerate(items)]
    for task in tasks:
        task.start()
    eventually(lambda: failures(experiment))
    os.killpg(heartbeat(experiment)["pid"], signal.SIGKILL)
    failed = failures(experiment)
    gate.open()
    for task in tasks:
        task.join(PATIENCE_SECONDS)
    assert len(list(experiment.glob(".tune_restore/*/whole/attempts/*"))) == 2
    assert failures(experiment) == failed
    (output,) = CommitRestoreOperator(task_id="commit", outcomes=restores).execute(make_context())
    assert len(output["failed"]) == len(failed)
    ledger, _ = read_ledger(open_store(str(experiment)))
    assert [len(history.failures) for history in ledger.trials.values()] == [1] * len(failed)
    assert not ledger.quarantined(None)


def failures(experiment: Path) -> list[str]:
    """Return the outcomes of trials that failed."""
    outcomes = experiment.glob(".tune_restore/*/trials/*/attempts/*/outcome.json")
    return sorted(str(path) for path in outcomes if '"failed"' in path.read_text())


def test_a_trial_that_fails_again_fails_its_own_task_for_good(copied):
    experiment = copied("limited")
    items, restores = plan(experiment, strategy="whole_experiment")
    tasks = [Task(item, i, TUNE_TEST_HEALED="0") for i, item in enumerate(items)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(PATIENCE_SECONDS)
        assert "out of luck at iteration 4" in str(task.error)
        assert "the next restore with resume_errored=True resumes it" in str(task.error)
        decided = task.operator.retry_policy.evaluate(task.error, 1, 2)
        assert decided.action is RetryAction.FAIL
    (output,) = CommitRestoreOperator(task_id="commit", outcomes=restores).execute(make_context())
    assert len(output["failed"]) == 3


def continue_(experiment: Path, kind: str, context=None, **arguments):
    arguments = {"env": ENV, **arguments}
    operator = ContinueSearchOperator(
        task_id="continue_search",
        experiment=str(experiment),
        trainable=TRAINABLES[kind],
        **arguments,
    )
    return operator.execute(context or make_context())


def restored(experiment: Path) -> None:
    """Restore the trials one by one, and commit them."""
    items, restores = plan(experiment)
    for i, item in enumerate(items):
        task = Task(item, i)
        task.run()
        assert task.error is None
    CommitRestoreOperator(task_id="commit", outcomes=restores).execute(make_context())


def completed(experiment: Path, kind: str) -> list[float]:
    """Return the values of all completed trials that the newest saved searcher knows."""
    import cloudpickle

    newest = max(experiment.glob("searcher-state-*.pkl"))
    state = cloudpickle.loads(newest.read_bytes())
    state = state if isinstance(state, dict) else state.__dict__
    if kind == "optuna":
        trials = state["_ot_study"].trials
        return [trial.value for trial in trials if trial.state.name == "COMPLETE"]
    return [-t["result"]["loss"] for t in state["_hpopt_trials"].trials if t["state"] == 2]


@pytest.mark.parametrize("kind", ["optuna", "hyperopt"])
def test_a_searcher_that_learns_is_told_what_was_restored_without_it(copied, kind):
    experiment = copied(kind)
    restored(experiment)
    assert len(completed(experiment, kind)) == 1
    output = continue_(experiment, kind)
    assert output["samples_left"] == 0
    trials = read_experiment(open_store(str(experiment))).trials
    assert len(trials) == 5
    scores = sorted(trial.last_result["score"] for trial in trials)
    # all five, the resumed one among them, as the searcher was told them
    assert sorted(completed(experiment, kind)) == pytest.approx(scores)
    assert all(found == EVERY for found in rows(experiment).values())
    with pytest.raises(AirflowSkipException, match="all its samples are drawn"):
        continue_(experiment, kind, make_context(run_id="next"))


def saved(experiment: Path) -> list[tuple[str, int]]:
    """Return the ends of the trials' ids and their iterations, as the newest snapshot has them."""
    states = sorted(experiment.glob(".tune_restore/*/whole/attempts/*/state.json"))
    rows = json.loads(states[-1].read_text())["trial_data"] if states else []
    results = [json.loads(run)["last_result"] for _, run in rows]
    return [(result["trial_id"][-5:], result["training_iteration"]) for result in results if result]


def test_a_killed_run_that_drew_samples_draws_none_twice_and_none_is_lost(copied, tmp_path):
    experiment = copied("left")
    restored(experiment)
    gate = Gate(tmp_path / "gate-is-open", before=4)
    failed = []

    def first_try() -> None:
        try:
            continue_(experiment, "left", env={**ENV, **gate.env})
        except AirflowException as error:
            failed.append(str(error))

    task = threading.Thread(target=first_try)
    task.start()
    eventually(lambda: ("00002", 3) in saved(experiment))
    os.killpg(heartbeat(experiment)["pid"], signal.SIGKILL)
    task.join(PATIENCE_SECONDS)
    assert "without recording an outcome" in failed[0]
    continue_(experiment, "left")
    trials = read_experiment(open_store(str(experiment))).trials
    assert sorted(trial.trial_id[-5:] for trial in trials) == ["00000", "00001", "00002", "00003"]
    assert sorted(rows(experiment).values()) == [EVERY] * 4


def test_an_experiment_that_never_started_is_started_in_its_place(copied):
    experiment = copied("limited")
    for path in experiment.iterdir():
        if path.name != layout.TUNER_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read_base(open_store(str(experiment))).trials == ()
    with pytest.raises(AirflowFailException, match="param_space"):
        continue_(experiment, "limited")
    output = continue_(experiment, "limited", param_space="tests.trainables:limited_space")
    assert output["failed"] == []
    assert [trial["action"] for trial in output["trials"]] == ["draw"] * 3
    assert list(rows(experiment).values()) == [EVERY] * 3
    assert {t.status for t in read_experiment(open_store(str(experiment))).trials} == {"TERMINATED"}
