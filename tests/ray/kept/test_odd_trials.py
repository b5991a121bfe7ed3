"""A trial that Ray itself cannot restore costs a run of all only that trial."""

import json

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import config_of
from tests.support.ray.real_restore import TRAINABLE_ENV

TRAINABLE = "tests.trainables:counting"


def _damage(experiment, change) -> list[str]:
    """Change the row of the trial that fails sparsely; return it."""
    (path,) = experiment.glob("experiment_state-*.json")
    state = json.loads(path.read_text())
    (row,) = (row for row in state["trial_data"] if "fails sparsely" in row[0])
    change(row)
    path.write_text(json.dumps(state))
    return list(row)


def _set(at, name, value):
    def change(row):
        document = json.loads(row[at])
        document[name] = value
        row[at] = json.dumps(document)

    return change


def _torn_checkpoints(row):
    document = json.loads(row[1])
    document["checkpoint_manager"]["value"] = document["checkpoint_manager"]["value"][:40]
    row[1] = json.dumps(document)


def _restore(hosts, experiment):
    return hosts.restore_by_us(
        str(experiment), TRAINABLE, strategy="whole_experiment",
        flags=ResumeFlags.from_flags(resume_errored=True),
        env={**TRAINABLE_ENV, "TUNE_TEST_HEALED": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_set(0, "placement_group_factory", "80"), id="its resources are torn"),
        pytest.param(_torn_checkpoints, id="its checkpoints are torn"),
        pytest.param(_set(0, "storage", None), id="it has no place"),
        pytest.param(_set(0, "config", None), id="it has no config"),
        pytest.param(_set(0, "config", [1]), id="its config is a list"),
        pytest.param(lambda row: row.__setitem__(1, "oops"), id="its metadata is text"),
    ],
)
def test_one_that_ray_cannot_read_stays_as_it_is_and_the_others_go_on(hosts, copied, change):
    experiment = copied("two_errored")
    before = _damage(experiment, change)
    summary = _restore(hosts, experiment)
    assert not summary.broke_off
    restored = read_experiment(open_store(str(experiment)))
    trials = {config_of(trial).get("role", "fails sparsely"): trial for trial in restored.trials}
    assert (trials["fails"].status, trials["fails"].iteration) == ("TERMINATED", 6)
    odd = trials["fails sparsely"]
    row = restored.state.rows[odd.trial_id]
    assert [json.loads(bytes(part)) for part in (row.trial, row.metadata)] == before
    outcome = AttemptRecords(
        open_store(str(experiment)), summary.restore_id, odd.trial_id
    ).outcome()
    told = next(change for change in summary.changes if change.trial_id == odd.trial_id)
    assert told.status_after == "ERROR"
    if told.was_run:
        assert outcome.result == Result.REFUSED
        assert outcome.error.startswith("Ray cannot restore it (")
        assert outcome.error in told.note
    else:
        assert outcome is None


def test_a_row_that_is_not_json_does_not_hold_up_the_others(hosts, copied):
    experiment = copied("two_errored")
    _damage(experiment, lambda row: row.__setitem__(0, "oops"))
    summary = _restore(hosts, experiment)
    assert not summary.broke_off
    assert summary.headline().partition(": ")[2].startswith("1 resumed trial finished")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_set(1, "last_result", [1]), id="its last result is a list"),
        pytest.param(_set(1, "last_result", None), id="its last result is null"),
        pytest.param(_set(1, "last_result_time", "today"), id="its time is text"),
        pytest.param(_set(1, "last_result_time", None), id="its time is null"),
        pytest.param(_set(0, "status", None), id="its status is null"),
        pytest.param(_set(0, "status", "STOPPED"), id="its status is unknown"),
    ],
)
def test_one_whose_results_are_odd_is_restored_with_the_others(hosts, copied, change):
    experiment = copied("two_errored")
    _damage(experiment, change)
    summary = _restore(hosts, experiment)
    assert summary.headline().partition(": ")[2].startswith("all 2 resumed trials finished")
