"""The oldest Ray we promise restores what it wrote, with our runner, and reads the end.

Its experiment is a golden one. slow/test_older_rays.py has the other Rays, and more kinds of trainables.
"""

import json
import shutil
import subprocess

from airflow_tune_restore.restore.commit import commit_restore
from tests.matrix.environments import OWN_RAYS, ray_python
from tests.support import GOLDEN, ROOT
from tests.support.experiments.failed import environment
from tests.support.ray.real_restore import RESTORE_ID, Restoring

OLDEST = OWN_RAYS[0]
READ_BACK = """
import json, sys
from ray.tune import ExperimentAnalysis
trials = ExperimentAnalysis(sys.argv[1]).trials
found = {t.trial_id: [t.status, t.last_result.get("training_iteration")] for t in trials}
print("FOUND " + json.dumps(found))
"""


def test_it_resumes_what_it_wrote_and_reads_the_end(tmp_path):
    python = ray_python(OLDEST)
    experiment = shutil.copytree(GOLDEN / f"ray-{OLDEST}" / "killed", tmp_path / "killed")
    restoring = Restoring(experiment, "errored", python=python)
    restoring.trial = next(trial for trial in restoring.plan.to_run if trial.status == "ERROR")
    ran = restoring.run(trainable="tests.golden.healed:train")
    assert ran.outcome is not None, ran.output
    assert (ran.outcome.result, ran.outcome.ray_version) == ("finished", OLDEST), ran.output
    assert restoring.iterations() == [1, 2, 3, 4]
    commit_restore(restoring.store, RESTORE_ID)
    read = subprocess.run(
        [python, "-c", READ_BACK, str(experiment)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (line,) = [line for line in read.stdout.splitlines() if line.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))
    assert found[restoring.trial.trial_id] == ["TERMINATED", 4]
