"""Code on its way to a cluster: what is packed, and that the runner alone suffices."""

import io
import os
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.ray import package
from airflow_tune_restore.launch.ray.package import deliver, directory_package, runner_package


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


def add(root, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


PLAIN = {".gitignore", "data/.rayignore", "data/small.txt", "pkg/__init__.py", "train.py"}
SECRET = (
    ".env",
    ".env.prod",
    ".netrc",
    ".pypirc",
    ".git-credentials",
    ".aws/credentials",
    ".ssh/config",
)
OF_RAY = (".git/config", ".venv/bin/python", "venv/bin/python")
"""Packaging leaves these behind, at any depth."""


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize("where", ["", "pkg/deeper/"])
def test_credentials_and_what_ray_leaves_out_stay_behind_with_a_word(project, is_module, where):
    add(project, *(where + name for name in (*SECRET, *OF_RAY)))
    package = directory_package(project, is_module=is_module)
    prefix = "project/" if is_module else ""
    assert {name.removeprefix(prefix) for name in names(package)} == PLAIN
    said = {why: set(paths) for why, paths in package.left_out.items()}
    assert said == {
        "may hold credentials": {where + name.partition("/")[0] for name in SECRET},
        "as Ray leaves it out": {where + name.partition("/")[0] for name in OF_RAY},
    }


@pytest.mark.parametrize("name", [*SECRET, *OF_RAY])
def test_one_that_is_asked_for_goes_along(project, name):
    add(project, *SECRET, *OF_RAY)
    package = directory_package(project, ["!" + name.partition("/")[0]], is_module=False)
    assert set(names(package)) == {*PLAIN, name}


def test_what_is_excluded_by_name_needs_no_word(project):
    add(project, ".env", ".git/config", "pkg/.netrc")
    (project / ".rayignore").write_text(".env\n")
    package = directory_package(project, [".git", "pkg"], is_module=False)
    assert package.left_out == {}
    assert set(names(package)) == {*PLAIN, ".rayignore"} - {"pkg/__init__.py"}


@pytest.mark.parametrize("file", [".gitignore", ".rayignore", "pkg/.gitignore"])
def test_what_is_asked_for_goes_along_though_an_ignore_file_names_it(project, file):
    """The usual case: who has an .env lists it in .gitignore."""
    add(project, "pkg/.env", "pkg/.netrc", "pkg/.aws/credentials")
    (project / file).write_text(".env\n.netrc\n.aws/\n")
    found = names(directory_package(project, ["!.env", "!.aws"], is_module=False))
    assert {"pkg/.env", "pkg/.aws/credentials"} <= set(found)
    assert "pkg/.netrc" not in found


def test_what_is_asked_for_and_excluded_again_stays_behind(project):
    assert "out/log.txt" in names(directory_package(project, ["!out"], is_module=False))
    assert "out/log.txt" not in names(
        directory_package(project, ["!out", "*.txt"], is_module=False)
    )


def test_nothing_comes_back_out_of_a_directory_that_stays_behind(project):
    """As in git."""
    assert "out/log.txt" not in names(directory_package(project, ["!log.txt"], is_module=False))


def test_rays_own_variables_count(project, monkeypatch):
    add(project, ".git/config", "venv/x", "build/x", ".env")
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "venv, build")
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    found = set(names(directory_package(project, is_module=False)))
    assert found == {*PLAIN, ".git/config", "out/log.txt", "__pycache__/train.pyc"}


def test_the_defaults_are_those_of_ray():
    ray_constants = pytest.importorskip("ray._private.ray_constants")
    assert package.RAY_EXCLUDES == ray_constants.RAY_RUNTIME_ENV_DEFAULT_EXCLUDES


def test_a_virtual_environment_and_a_private_key_are_known_by_what_they_are(project):
    add(project, "py311/bin/python", "py311/pyvenv.cfg", "keys/ca.pem")
    (project / "keys" / "deploy").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx")
    (project / "keys" / "server.pem").write_text("-----BEGIN RSA PRIVATE KEY-----\nx")
    package = directory_package(project, is_module=False)
    assert set(names(package)) == {*PLAIN, "keys/ca.pem"}
    assert package.left_out == {
        "a private key": ["keys/deploy", "keys/server.pem"],
        "a virtual environment": ["py311"],
    }
    asked = directory_package(project, ["!keys/*", "!py311"], is_module=False)
    assert {"keys/deploy", "py311/bin/python"} <= set(names(asked))
    assert asked.left_out == {}


def test_links_out_of_the_directory_are_not_followed_unless_asked_for(project, tmp_path):
    add(tmp_path, "elsewhere/secret", "project-too/secret")
    (project / "file").symlink_to(tmp_path / "elsewhere" / "secret")
    (project / "directory").symlink_to(tmp_path / "elsewhere")
    (project / "beside").symlink_to("../project-too")
    (project / "pkg" / "within").symlink_to("../data/small.txt")
    package = directory_package(project, is_module=False)
    assert set(names(package)) == {*PLAIN, "pkg/within"}
    assert package.left_out == {"a link out of it": ["beside", "directory", "file"]}
    asked = directory_package(project, ["!/directory"], is_module=False)
    assert set(names(asked)) == {*PLAIN, "pkg/within", "directory/secret"}


def test_a_directory_that_is_itself_a_link_is_packed(project, tmp_path, packages):
    (tmp_path / "current").symlink_to(project)
    env = deliver(packages, {"working_dir": str(tmp_path / "current")})
    body = packages.held[env["working_dir"].removeprefix("gcs://")]
    assert set(zipfile.ZipFile(io.BytesIO(body)).namelist()) == PLAIN


def test_what_no_zip_file_can_hold_does_not_break_packing(project, tmp_path):
    os.mkfifo(project / "pipe")
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(project)  # the path of a socket may have 107 bytes
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
        server.close()
    (project / "device").symlink_to("/dev/zero")
    (project / "self").symlink_to("self")
    (project / "there").symlink_to("back")
    (project / "back").symlink_to("there")
    (project / "nowhere").symlink_to("gone")
    (project / "through").symlink_to("train.py/model")
    (project / "long").symlink_to("x" * 300)
    (project / "pkg" / "up").symlink_to("..")
    (project / "pkg" / "same").symlink_to(".")
    Path(os.fsdecode(bytes(project) + b"/\xff.txt")).write_text("")
    package = directory_package(project, ["!up"], is_module=False)
    assert set(names(package)) == PLAIN
    assert package.left_out == {
        "a link back": ["pkg/same", "pkg/up"],
        "no zip file can hold its name": ["\udcff.txt"],
    }


def test_one_warning_a_directory_names_what_stays_behind(project, packages, monkeypatch):
    said = []
    monkeypatch.setattr(package.logger, "warning", lambda text, *given: said.append(text % given))
    add(project, ".env", ".git/config", *(f"pkg/{n}/.netrc" for n in range(30)))
    (project / "esc\x1b[31m").symlink_to("/etc")
    deliver(packages, {"working_dir": str(project), "py_modules": [str(project)]})
    first, second = said
    assert first == second
    assert first.isprintable()
    assert first.startswith(
        f"Not sent to the cluster from {project}: .env, pkg/0/.netrc, pkg/1/.netrc, "
    )
    assert " and 11 more (may hold credentials); .git (as Ray leaves it out); esc" in first
    assert '"excludes": ["!.env"]' in first
    deliver(packages, {"working_dir": str(project / "data")})
    assert len(said) == 2


def test_the_name_does_not_follow_the_order_on_the_disk(project, monkeypatch):
    add(project, ".env", "pkg/a", "pkg/b")
    first = directory_package(project, is_module=False)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    assert directory_package(project, is_module=False) == first


@pytest.mark.parametrize("excludes", ["data", ["!"]])
def test_excludes_that_are_none_are_refused(project, packages, excludes):
    with pytest.raises(InvalidInputError, match=r"excludes.* in the runtime_env"):
        deliver(packages, {"working_dir": str(project), "excludes": excludes})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"working_dir": 5}, "working_dir=5 in the runtime_env is not a directory or URI"),
        ({"working_dir": ""}, "working_dir='' in the runtime_env is not a directory or URI"),
        ({"py_modules": "abc"}, "py_modules='abc' in the runtime_env is not a list of directories"),
        ({"py_modules": [5]}, "is not a list of directories"),
        ({"env_vars": [1]}, "env_vars in the runtime_env is not an object of strings"),
        ({"env_vars": {"A": 1}}, "env_vars in the runtime_env is not an object of strings"),
    ],
)
def test_a_runtime_env_of_another_shape_is_refused(packages, given, words):
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        deliver(packages, given)
    assert packages.uploads == 0


def test_an_ignore_file_may_hold_any_bytes(project):
    (project / ".rayignore").write_bytes(b"\xff\xfe\x00\ntrain.py\n")
    assert "train.py" not in names(directory_package(project, is_module=False))


def test_a_file_that_cannot_be_read_is_named(project, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InvalidInputError, match=r"gitignore cannot be packed.*Permission denied"):
        directory_package(project, is_module=False)


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
    monkeypatch.setattr(package, "MAX_PACKAGE_BYTES", 100)
    with pytest.raises(InvalidInputError, match="larger than a Ray cluster accepts"):
        deliver(packages, {"working_dir": str(project)})
    assert packages.uploads == 0


def test_the_runner_needs_nothing_of_airflow_nor_msgspec(tmp_path):
    zipfile.ZipFile(io.BytesIO(runner_package().body)).extractall(tmp_path)
    code = """
import sys
for name in ("airflow", "msgspec", "httpx", "pathspec", "rich", "typer"):
    sys.modules[name] = None
import airflow_tune_restore.runner.__main__, airflow_tune_restore.runner.attempt
import airflow_tune_restore.runner.tune.experiment_controller
import airflow_tune_restore.runner.tune.trial_controller
import airflow_tune_restore.runner.tune.scheduler, airflow_tune_restore.storage.s3
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
