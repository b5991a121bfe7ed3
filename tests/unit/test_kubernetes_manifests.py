"""What we show people to apply is what Kubernetes takes, and allows what our operators do."""

import kubernetes_validate
import pytest
import yaml

from tests.support import ROOT
from tests.support.kubernetes.api import rules_of

DIRECTORY = ROOT / "docs" / "kubernetes"
MANIFESTS = [
    pytest.param(manifest, id=f"{path.name}-{manifest['kind']}")
    for path in sorted(DIRECTORY.glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]


@pytest.mark.parametrize("manifest", MANIFESTS)
@pytest.mark.parametrize("release", ["1.29", "1.34"])
def test_a_manifest_fits_the_published_schema(manifest, release):
    kubernetes_validate.validate(manifest, release, strict=True)


def test_the_schema_is_looked_at():
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rulez": []}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(role, "1.34", strict=True)


def test_the_role_is_bound_and_small():
    manifests = list(yaml.safe_load_all((DIRECTORY / "rbac.yaml").read_text()))
    (binding,) = [m for m in manifests if m["kind"] == "RoleBinding"]
    (role,) = [m for m in manifests if m["kind"] == "Role"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    # no secrets, no exec, nothing outside its namespace; tests/ run with exactly these
    assert {resource for _, resource in rules_of(manifests)} == {"pods", "pods/log", "events"}


def test_the_recipe_of_the_image_installs_no_airflow():
    lines = (DIRECTORY / "Dockerfile").read_text().splitlines()
    (install,) = [line for line in lines if "airflow-tune-restore" in line and "pip" in line]
    assert "--no-deps" in install
