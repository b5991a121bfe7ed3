"""The wheel in deployments that pin their packages: Airflow's constraints, and a fresh environment."""

import re
import subprocess

import pytest

from tests.matrix.environments import AIRFLOWS, UV
from tests.support import ROOT

PINNING = [version for version, day in AIRFLOWS.items() if day]
EXTRAS = ["", "ray", "s3", "amazon", "gcs", "azure", "kubernetes"]
MOVES = {
    ("3.1.8", "kubernetes"): "apache-airflow-providers-cncf-kubernetes==10.15.0",
    ("3.2.2", "kubernetes"): "apache-airflow-providers-cncf-kubernetes==10.17.1",
}
"""What cannot keep a pin, and which one: docs/compatibility.md shows them."""


def uv(*arguments, **options) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([UV, *arguments], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    built = uv("build", "--quiet", "--wheel", "--out-dir", str(directory), str(ROOT))
    assert built.returncode == 0, built.stderr
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module", params=PINNING)
def constraints(request, tmp_path_factory):
    """The version of an Airflow, and what its constraints pin: it with all providers, on its day."""
    version = request.param
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    made = uv(
        "pip", "compile", "--quiet", "--no-annotate", "--no-header", "-", "--output-file", str(path),
        "--exclude-newer", AIRFLOWS[version], input=f"apache-airflow[all]=={version}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return version, path


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_wheel_moves_no_pinned_package(wheel, constraints, extra):
    version, path = constraints
    name = f"airflow-tune-restore[{extra}]" if extra else "airflow-tune-restore"
    resolved = uv(
        "pip", "compile", "--quiet", "--no-annotate", "--no-header", "-", "--constraint", str(path),
        input=f"{name} @ {wheel.as_uri()}\napache-airflow=={version}",
    )  # fmt: skip
    if pin := MOVES.get((version, extra)):
        assert pin in resolved.stderr
        return
    assert resolved.returncode == 0, resolved.stderr
    pins, found = pinned(path.read_text()), pinned(resolved.stdout)
    assert found["apache-airflow"] == version
    assert {name: found[name] for name in found.keys() & pins} == {
        name: pins[name] for name in found.keys() & pins
    }


def pinned(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
