"""Real trainers: restored by us as `Tuner.restore` restores them.

Those that need Torch (five gigabytes) run in the whole matrix only: `python -m tests.matrix trainers`.
"""

import importlib.util
import shutil

import pytest

from tests.support.ray.pair import make_pair

MODULE = "tests.support.experiments.trainers"
NUMBERS = ("trial_id", "config", "status", "num_failures", "kept", "checkpoints", "checkpoint")
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="Torch is installed for the whole matrix only: uv sync --group trainers",
)


@pytest.fixture
def hosts_of_today(hosts, tmp_path):
    """Ray Train V2: what Ray has by default since 2.51; trainers are no longer given to Tune.

    A process decides for one of them when it imports Ray Train, and tells the trials that it starts.
    """
    with hosts.fresh(tmp_path, RAY_TRAIN_V2_ENABLED="1") as fresh:
        yield fresh


@pytest.mark.parametrize(
    ("tuner", "trainable"),
    [("launching", "launch"), pytest.param("launching_torch", "launch_torch", marks=needs_torch)],
)
def test_a_function_that_starts_a_trainer_goes_on_with_its_train_run(
    hosts_of_today, tmp_path, cause, tuner, trainable
):
    """Its checkpoints are the Train run's own; Ray Train finds them by the name of the run."""
    runs = tmp_path / "runs"
    pair = make_pair(
        hosts_of_today, tmp_path, tuner, trainable=trainable, module=MODULE, cause=str(cause),
        runs=str(runs),
    )  # fmt: skip
    cause.unlink()
    before = shutil.copytree(runs, tmp_path / "runs before")
    case = {"uri": str(pair.theirs), "trainable": pair.trainable, "flags": {"resume_errored": True}}
    hosts_of_today.ray.call("restore", case, **pair.env)
    shutil.rmtree(runs)  # both go on from the same
    before.rename(runs)
    pair.restore_ours({"resume_errored": True})
    theirs, ours = (pair.describe(each)["trials"] for each in (pair.theirs, pair.ours))
    assert [trial["status"] for trial in ours] == ["TERMINATED"]
    for result in (r for trial in (*ours, *theirs) for r in (*trial["rows"], trial["last_result"])):
        del result["checkpoint_path"]  # Ray Train names its checkpoints after the time
    assert ours == theirs
    assert [row["started_from"] for row in ours[0]["rows"]][-2:] == [2, 2]


@needs_torch
def test_a_torch_trainer_that_tune_runs_itself_goes_on(hosts, tmp_path, cause):
    pair = make_pair(
        hosts, tmp_path, "torch_trainer_tuner", trainable="torch_trainer", module=MODULE,
        cause=str(cause),
    )  # fmt: skip
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    ends.assert_same("contents")  # zip archives, with times in them
    (rows,) = ends.column("rows")
    assert [row["started_from"] for row in rows] == [0, 0, 2, 2]
    losses = [-row["score"] for row in rows]
    assert losses == sorted(losses, reverse=True)


def test_lightgbm_goes_on_from_its_saved_booster(hosts, tmp_path, cause):
    pair = make_pair(
        hosts, tmp_path, "boosting", trainable="boost", module=MODULE, cause=str(cause)
    )
    cause.unlink()
    ends = pair.restore({"resume_errored": True})
    ends.assert_same()
    (rows,) = ends.column("rows")
    assert len(rows) == 4
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)


@needs_torch
def test_an_rllib_algorithm_goes_on_by_its_registered_name(hosts, tmp_path):
    pair = make_pair(
        hosts, tmp_path, "reinforced", trainable="ray.rllib:PPO", module=MODULE, dies_after=2,
        is_saved=True,
    )  # fmt: skip
    pair.trainable = "PPO"
    ends = pair.restore()
    for name in NUMBERS:
        ends.column(name)
    iterations = []
    for each in (ends.ours, ends.theirs):
        (trial,) = each["trials"]
        iterations.append([row["training_iteration"] for row in trial["rows"]])
    assert iterations[0] == iterations[1]
    assert sorted(set(iterations[0])) == [1, 2, 3, 4]
    assert ends.column("status") == ["TERMINATED"]
