"""An older Ray makes an experiment, our runner restores it there, and that Ray reads the end.

Here it is the oldest we promise; `python -m tests.matrix ray` takes others, too. Everything else runs on
the newest.
"""

import shutil
import subprocess

import pytest

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.matrix.environments import OWN_RAYS, WHOLE, ray_python
from tests.support import ROOT
from tests.support.experiments.failed import environment, make_experiments
from tests.support.ray.real_restore import RESTORE_ID, Restoring

READ_BACK = """
import sys
from ray.tune import ExperimentAnalysis
analysis = ExperimentAnalysis(sys.argv[1])
print("ROWS", sorted((t.status, t.last_result["training_iteration"]) for t in analysis.trials))
"""


@pytest.fixture(scope="module", params=OWN_RAYS if WHOLE else OWN_RAYS[:1])
def version(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def old_python(version) -> str:
    """An interpreter with that Ray, and nothing of ours or of Airflow's."""
    return ray_python(version)


@pytest.fixture(scope="module")
def made_by_it(old_python, tmp_path_factory):
    kinds = ["errored", "class", "with_parameters"]
    return make_experiments(tmp_path_factory.mktemp("old"), kinds, python=old_python)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("errored", {"resume_errored": True}),
        ("errored", {"restart_errored": True}),
        ("class", {"resume_errored": True}),
        ("with_parameters", {"resume_errored": True}),
    ],
)
def test_it_restores_and_reads_its_own(version, old_python, made_by_it, tmp_path, kind, flags):
    experiment = shutil.copytree(made_by_it[kind], tmp_path / kind)
    restoring = Restoring(
        experiment, kind, python=old_python, flags=ResumeFlags.from_flags(**flags)
    )
    ran = restoring.run()
    assert ran.outcome is not None, ran.output
    assert (ran.outcome.result, ran.outcome.ray_version) == ("finished", version), ran.output
    if "restart_errored" not in flags:
        assert restoring.iterations() == [1, 2, 3, 4, 5, 6]
    summary = commit_restore(restoring.store, RESTORE_ID)
    assert not summary.failed

    read = subprocess.run(
        [old_python, "-c", READ_BACK, str(experiment)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = [("TERMINATED", 6)] * len(summary.changes)
    assert f"ROWS {expected}" in read.stdout, read.stderr[-2000:]
