"""What a trial continues from, with Ray's own trial replaced by its few fields that matter."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.tune import checkpoints
from airflow_tune_restore.storage.fs import open_store

pytest.importorskip("ray.tune")
DIR = "train_0"


class Trial:
    """The part of `ray.tune.experiment.Trial` that is looked at."""

    def __init__(self, root, recorded, *, listed=(), index=0) -> None:
        self.trial_id = "t"
        self.relative_logdir = DIR
        self.storage = SimpleNamespace(
            trial_fs_path=f"{root}/{DIR}", storage_filesystem=None, current_checkpoint_index=index
        )
        results = {name: self._result(name) for name in {*listed, *filter(None, [recorded])}}
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(
                checkpoint_config=SimpleNamespace(checkpoint_score_attribute=None),
                _checkpoint_results=[results[name] for name in listed],
                _latest_checkpoint_result=results.get(recorded),
            )
        )

    def _result(self, name):
        path = f"{self.storage.trial_fs_path}/{name}"
        return SimpleNamespace(
            checkpoint=SimpleNamespace(path=path), metrics={"training_iteration": _number(name) + 1}
        )

    @property
    def latest_checkpoint_result(self):
        return self.run_metadata.checkpoint_manager._latest_checkpoint_result

    @property
    def latest(self):
        result = self.latest_checkpoint_result
        return result and result.checkpoint.path.rpartition("/")[2]

    @property
    def listed(self):
        known = self.run_metadata.checkpoint_manager._checkpoint_results
        return [result.checkpoint.path.rpartition("/")[2] for result in known]


def _number(name: str) -> int:
    return int(name.removeprefix("checkpoint_"))


def name(number: int) -> str:
    return f"checkpoint_{number:06d}"


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_posix())


def fill(store, *numbers: int) -> None:
    for number in numbers:
        store.put(f"{DIR}/{name(number)}/state.json", b"{}")
    rows = [{"training_iteration": n + 1, "checkpoint_dir_name": name(n)} for n in range(9)]
    store.put(f"{DIR}/result.json", "".join(json.dumps(row) + "\n" for row in rows).encode())


def request(checkpoint: str | None, iteration: int = 0) -> RunnerRequest:
    return RunnerRequest(
        experiment="", restore_id="r", trial_id="t", attempt=1, trainable="", trainable_name="",
        action="resume", checkpoint=checkpoint, iteration=iteration,
    )  # fmt: skip


def test_the_recorded_checkpoint_stays_if_the_plan_chose_it(store):
    fill(store, 0, 1)
    trial = Trial(store.uri, name(1), listed=[name(0), name(1)], index=1)
    checkpoints.start_as_planned(store, trial, request(name(1), 2))
    assert (trial.latest, checkpoints.start_of(trial)) == (name(1), (name(1), 2))
    assert trial.storage.current_checkpoint_index == 1


def test_the_plans_choice_replaces_one_that_is_gone(store):
    fill(store, 0, 1)
    trial = Trial(store.uri, name(2), listed=[name(1), name(2)], index=2)
    checkpoints.start_as_planned(store, trial, request(name(1), 2))
    assert (trial.latest, checkpoints.start_of(trial)) == (name(1), (name(1), 2))
    assert trial.listed == [name(1)]


def test_a_choice_no_row_tells_of_has_the_plans_iteration(store):
    store.put(f"{DIR}/{name(1)}/state.json", b"{}")
    trial = Trial(store.uri, name(2), index=2)
    checkpoints.start_as_planned(store, trial, request(name(1), 7))
    assert checkpoints.start_of(trial).iteration == 7


def test_without_a_choice_it_starts_from_scratch(store):
    trial = Trial(store.uri, name(2), listed=[name(2)], index=2)
    checkpoints.start_as_planned(store, trial, request(None))
    assert (trial.latest, checkpoints.start_of(trial)) == (None, None)
    assert trial.listed == []


def test_a_new_checkpoint_never_takes_the_place_of_one_that_exists(store):
    fill(store, 0, 1, 2, 5)
    trial = Trial(store.uri, name(1), index=1)
    checkpoints.start_as_planned(store, trial, request(name(1), 2))
    assert trial.storage.current_checkpoint_index == 5


@pytest.mark.parametrize("attempt", [2, 3])
def test_a_late_upload_of_an_earlier_attempt_never_takes_the_place_of_a_new_checkpoint(
    store, attempt
):
    """Each earlier attempt may have sent one more, which the store has not carried out yet."""
    fill(store, 0, 1)
    seed, snapshot = (Trial(store.uri, name(1), index=1) for _ in range(2))
    checkpoints.start_as_planned(store, seed, replace(request(name(1), 2), attempt=attempt))
    checkpoints.continue_from_snapshot(store, snapshot, attempt=attempt)
    assert seed.storage.current_checkpoint_index == attempt  # that of the last one, to Ray
    assert snapshot.storage.current_checkpoint_index == attempt


def test_a_snapshot_whose_checkpoint_is_gone_goes_on_from_the_newest_that_is_left(store):
    fill(store, 1, 2)
    trial = Trial(store.uri, name(3), listed=[name(3)], index=3)
    checkpoints.continue_from_snapshot(store, trial, attempt=2)
    assert (trial.latest, checkpoints.start_of(trial)) == (name(2), (name(2), 3))


def test_a_snapshot_of_which_nothing_is_left_starts_over(store):
    trial = Trial(store.uri, name(3), listed=[name(3)], index=3)
    checkpoints.continue_from_snapshot(store, trial, attempt=2)
    assert trial.latest is None
