"""`tune-restore restore --on kubernetes` with real Ray in emulated pods: to the end, and SIGTERM."""

import json
import signal

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support.kubernetes.api import IMAGE, NAMESPACE, base
from tests.support.ray.jobs import rows
from tests.support.ray.shell import Shell


@pytest.fixture
def shell(api, tmp_path):
    """Starts the command; the pods get these variables from a template."""

    def start(experiment, *options, **env):
        template = tmp_path / "pod.json"
        variables = [{"name": name, "value": value} for name, value in env.items()]
        container = {"name": "base", "image": "from the option", "env": variables}
        template.write_text(json.dumps({"kind": "Pod", "spec": {"containers": [container]}}))
        on = ("--on", "kubernetes", "--image", IMAGE, "--namespace", NAMESPACE)
        config = api.kubeconfig(tmp_path / "kubeconfig.json")
        template_option = ("--pod-template", str(template))
        return Shell(experiment, *on, *template_option, *options, KUBECONFIG=config)

    return start


def test_a_restore_runs_in_pods_and_a_signal_deletes_them_with_a_snapshot(api, shell, copied, gate):
    experiment = copied("errored")
    first = shell(experiment, **gate.env)
    first.await_line("iteration 4")  # the gate lets it do that one, and no more
    first.signal(signal.SIGTERM)  # as Ctrl-C; that one is tested on Ray
    code, out, err = first.end()
    assert code == 143, out + err
    assert "Stopping. Saving snapshots, then committing what has finished." in err
    assert "0 of 1 resumed trial finished" in " ".join(out.split())
    trials = read_experiment(open_store(str(experiment))).trials
    assert [trial.iteration for trial in trials if not trial.is_finished] == [4]
    assert api.pod_names() == []

    code, out, err = shell(experiment, "--stale-after", "0", "--json").end()
    assert code == 0, out + err
    assert [trial["iteration_after"] for trial in json.loads(out)["trials"]] == [6, 6]
    assert [base(pod)["image"] for pod in api.created] == [IMAGE, IMAGE]
    assert api.pod_names() == []
    assert [1, 2, 3, 4, 5, 6] in rows(str(experiment)).values()


def test_a_cluster_that_cannot_be_used_is_refused_before_anything_is_leased(api, copied, tmp_path):
    experiment = copied("errored")
    on = ("--on", "kubernetes", "--image", IMAGE)
    code, _, err = Shell(experiment, *on, KUBECONFIG=str(tmp_path / "missing")).end()
    assert code == 2
    assert "No connection to Kubernetes" in err
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", token="wrong")
    code, _, err = Shell(experiment, *on, KUBECONFIG=kubeconfig).end()
    assert code == 2
    assert "refused the credentials of the kubeconfig: 401" in " ".join(err.split())
    assert not (experiment / ".tune_restore").exists()
