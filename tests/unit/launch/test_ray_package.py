"""Code on its way to a cluster: what is packed, and that the runner alone suffices."""

import io
import os
import subprocess
import sys
import zipfile

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch import ray_package
from airflow_tune_restore.launch.ray_package import deliver, directory_package, runner_package


def names(package) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(package.body)).namelist()


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for name in ("train.py", "data/big.bin", "data/small.txt", "out/log.txt", "pkg/__init__.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "train.pyc").write_text("")
    (root / ".gitignore").write_text("out/\n")
    (root / "data" / ".rayignore").write_text("*.bin\n")
    return root


def test_ignored_files_stay_behind(project):
    found = names(directory_package(project, ["pkg"], is_module=False))
    assert found == [".gitignore", "data/.rayignore", "data/small.txt", "train.py"]


def test_a_module_goes_with_its_name(project):
    assert "project/train.py" in names(directory_package(project, is_module=True))


def test_the_name_follows_the_content(project):
    first = directory_package(project, is_module=False)
    os.utime(project / "train.py", (1, 1))
    assert directory_package(project, is_module=False).name == first.name
    (project / "train.py").write_text("changed")
    assert directory_package(project, is_module=False).name != first.name


def test_local_parts_are_uploaded_once_and_the_runner_with_them(project, packages):
    given = {
        "working_dir": str(project),
        "py_modules": ["s3://bucket/wheel.whl", str(project)],
        "excludes": ["data"],
        "pip": ["torch"],
    }
    env = deliver(packages, given)
    assert env["working_dir"].startswith("gcs://_ray_pkg_")
    assert env["py_modules"][0] == "s3://bucket/wheel.whl"
    assert len(env["py_modules"]) == 3
    assert env["pip"] == ["torch"]
    assert "excludes" not in env
    assert packages.uploads == 3
    assert deliver(packages, given) == env
    assert packages.uploads == 3
    assert given["excludes"] == ["data"]


def test_a_wheel_keeps_its_name(tmp_path, packages):
    wheel = tmp_path / "mine-1.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    env = deliver(packages, {"py_modules": [str(wheel)]})
    assert env["py_modules"][0] == "gcs://mine-1.0-py3-none-any.whl"


def test_a_directory_is_packed_though_its_path_looks_like_a_url(tmp_path, packages):
    code = tmp_path / "a:" / "code"
    code.mkdir(parents=True)
    (code / "train.py").write_text("")
    env = deliver(packages, {"working_dir": f"{tmp_path}/a://code"})
    assert env["working_dir"].startswith("gcs://_ray_pkg_")


@pytest.mark.parametrize("name", ["nowhere", "train.py"])
def test_what_cannot_be_packed_is_named(project, packages, name):
    with pytest.raises(InvalidInputError, match="neither a directory"):
        deliver(packages, {"py_modules": [str(project / name)]})


def test_too_much_is_refused_before_it_is_sent(project, packages, monkeypatch):
    monkeypatch.setattr(ray_package, "MAX_PACKAGE_BYTES", 100)
    with pytest.raises(InvalidInputError, match="more than a Ray cluster takes"):
        deliver(packages, {"working_dir": str(project)})
    assert packages.uploads == 0


def test_the_runner_needs_nothing_of_airflow_nor_msgspec(tmp_path):
    zipfile.ZipFile(io.BytesIO(runner_package().body)).extractall(tmp_path)
    code = """
import sys
for name in ("airflow", "msgspec", "httpx", "pathspec", "rich", "typer"):
    sys.modules[name] = None
import airflow_tune_restore.runner.__main__, airflow_tune_restore.runner.attempt
import airflow_tune_restore.runner.experiment_controller, airflow_tune_restore.runner.trial_controller
import airflow_tune_restore.runner.scheduler_memory, airflow_tune_restore.storage.s3
import airflow_tune_restore
print(airflow_tune_restore.__path__[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "airflow_tune_restore")
