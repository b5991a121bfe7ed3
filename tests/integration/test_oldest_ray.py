"""The oldest Ray we promise: it makes an experiment, our runner restores it there, and it reads the end.

Everything else runs on the newest. The old Ray lives in a cached environment of its own, made with uv.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.experiments import ROOT, environment, make_experiments
from tests.restoring import RESTORE_ID, Restoring

OLDEST = "2.40.0"
READ_BACK = """
import sys
from ray.tune import ExperimentAnalysis
analysis = ExperimentAnalysis(sys.argv[1])
print("ROWS", sorted((t.status, t.last_result["training_iteration"]) for t in analysis.trials))
"""


@pytest.fixture(scope="module")
def old_python() -> str:
    """An interpreter with the oldest Ray, and nothing of ours or of Airflow's."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "airflow-tune-restore")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = cache / f"ray-{OLDEST}-python-{version}"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        uv = str(Path(sys.executable).with_name("uv"))
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, home], check=True)
        packages = [f"ray[tune]=={OLDEST}", "setuptools<81"]
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        subprocess.run([*install, *packages], check=True)
        (home / "ready").touch()
    return str(python)


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
def test_it_restores_and_reads_its_own(old_python, made_by_it, tmp_path, kind, flags):
    experiment = shutil.copytree(made_by_it[kind], tmp_path / kind)
    restoring = Restoring(
        experiment, kind, python=old_python, flags=ResumeFlags.from_flags(**flags)
    )
    ran = restoring.run()
    assert ran.outcome is not None, ran.output
    assert (ran.outcome.result, ran.outcome.ray_version) == ("finished", OLDEST), ran.output
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
