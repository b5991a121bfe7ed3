"""What older Rays wrote is read, planned and restored by the newest, as the newest itself would.

The experiments lie in `tests/golden`, made by `make_golden.py` with each version. A part of them is
restored here; `python -m tests.matrix` restores them all.
"""

import shutil

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import TrialAction
from airflow_tune_restore.restore.start import plan_restore
from airflow_tune_restore.storage.fs import open_store
from tests.matrix.environments import WHOLE
from tests.support import GOLDEN
from tests.support.ray.kept import started_hosts
from tests.support.ray.pair import Pair

VERSIONS = [
    path.name.removeprefix("ray-")
    for path in sorted(GOLDEN.glob("ray-*"), key=lambda p: tuple(map(int, p.name[4:].split("."))))
]
RESTORED = VERSIONS if WHOLE else [VERSIONS[0], VERSIONS[-2]]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with started_hosts(tmp_path_factory.mktemp("hosts")) as started:
        yield started


@pytest.mark.parametrize("version", VERSIONS)
def test_what_it_wrote_is_read_and_planned(version):
    store = open_store((GOLDEN / f"ray-{version}" / "killed").as_posix())
    experiment = read_experiment(store)
    assert (experiment.trainable_name, experiment.samples_left) == ("train", 0)
    plan = plan_restore(
        store, experiment, restore_id="r", flags=ResumeFlags.from_flags(resume_errored=True)
    )
    roles = {trial.trial_id: trial.config["role"] for trial in experiment.trials}
    assert {roles[t.trial_id]: (t.action, t.checkpoint) for t in plan.trials} == {
        "finishes": (TrialAction.KEEP, None),
        "fails": (TrialAction.RESUME, "checkpoint_000001"),
        "hangs": (TrialAction.RESUME, "checkpoint_000001"),
        "silent": (TrialAction.RESUME, None),
        "waits": (TrialAction.RESUME, None),
    }
    assert plan.warnings == ()


@pytest.mark.parametrize("version", RESTORED)
def test_what_it_wrote_is_restored_as_the_newest_ray_restores_it(hosts, tmp_path, version):
    theirs, ours = tmp_path / "theirs" / "killed", tmp_path / "ours" / "killed"
    for copy in (theirs, ours):
        shutil.copytree(GOLDEN / f"ray-{version}" / "killed", copy)
    pair = Pair(hosts, theirs, ours, "tests.golden.healed:train")
    ends = pair.restore({"resume_errored": True})
    ends.assert_same("dir")
    assert ends.column("status") == ["TERMINATED"] * 5
    for rows in ends.column("rows"):
        assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4]
