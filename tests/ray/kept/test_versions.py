"""What older Rays wrote is read and planned.

The experiments lie in `tests/golden`, made by `make_golden.py` with each version. All of
them are restored by the newest in slow/test_every_version.py.
"""

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.storage.fs import open_store
from tests.support import GOLDEN
from tests.support.experiments.built import config_of
from tests.support.ray.golden import VERSIONS
from tests.support.records import plan_night


@pytest.mark.parametrize("version", VERSIONS)
def test_what_it_wrote_is_read_and_planned(version):
    store = open_store((GOLDEN / f"ray-{version}" / "killed").as_posix())
    experiment = read_experiment(store)
    assert (experiment.tuner.trainable_name, experiment.samples_left) == ("train", 0)
    plan = plan_night(store)
    roles = {trial.trial_id: config_of(trial)["role"] for trial in experiment.trials}
    assert {roles[t.trial_id]: (t.action, t.checkpoint) for t in plan.trials} == {
        "finishes": (TrialAction.KEEP, None),
        "fails": (TrialAction.RESUME, "checkpoint_000001"),
        "hangs": (TrialAction.RESUME, "checkpoint_000001"),
        "silent": (TrialAction.RESUME, None),
        "waits": (TrialAction.RESUME, None),
    }
    assert plan.warnings == ()
