"""The wheel in deployments that pin their packages: Airflow's constraints, and a fresh environment."""

import subprocess

import pytest

from tests.matrix.environments import AIRFLOWS, UV, build_wheel, make_constraints, pinned

PINNING = [version for version, day in AIRFLOWS.items() if day]
EXTRAS = ["", "ray", "s3", "amazon", "gcs", "azure", "kubernetes"]
MOVES = {
    ("3.1.8", "kubernetes"): "apache-airflow-providers-cncf-kubernetes==10.15.0",
    ("3.2.2", "kubernetes"): "apache-airflow-providers-cncf-kubernetes==10.17.1",
}
"""What cannot keep a pin, and which one: docs/compatibility.md shows them."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module", params=PINNING)
def constraints(request, tmp_path_factory):
    """The version of an Airflow, its constraints, and what they pin."""
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    return request.param, path, make_constraints(request.param, path)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_wheel_moves_no_pinned_package(wheel, constraints, extra):
    version, path, pins = constraints
    name = f"airflow-tune-restore[{extra}]" if extra else "airflow-tune-restore"
    resolved = subprocess.run(
        [UV, "pip", "compile", "--quiet", "--no-annotate", "--no-header", "-", "--constraint", path],
        input=f"{name} @ {wheel.as_uri()}\napache-airflow=={version}",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if pin := MOVES.get((version, extra)):
        assert pin in resolved.stderr
        return
    assert resolved.returncode == 0, resolved.stderr
    found = pinned(resolved.stdout)
    assert found["apache-airflow"] == version
    assert {name: found[name] for name in found.keys() & pins} == {
        name: pins[name] for name in found.keys() & pins
    }
