"""One pod a trial: the real operator and client against an emulated cluster, real Ray in the pods.

More of it: slow/test_more_kubernetes_pods.py.
"""

import pytest
from airflow.sdk.exceptions import AirflowException

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.start import read_plan
from tests.support.kubernetes import pods
from tests.support.kubernetes.api import base


def test_a_trial_is_resumed_in_a_pod_of_its_own(trial, api, capfd):
    operator = trial.operator(labels={"team": "vision"}, service_account_name="runner")
    context = pods.pod_context()
    result = operator.execute(context)
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 1)
    assert context["ti"].pushed["return_value"] == result
    (pod,) = api.created
    labels = pod["metadata"]["labels"]
    assert labels["tune-restore/experiment"] == "errored"
    assert labels["tune-restore/trial"] == trial.item["trial_id"]
    assert labels["tune-restore/restore"] == trial.restore_id
    assert (labels["tune-restore/attempt"], labels["team"]) == ("1", "vision")
    assert pod["spec"]["serviceAccountName"] == "runner"
    log = capfd.readouterr().out
    assert "iteration 6, score=12" in log
    assert "::tune-restore-progress::" not in log
    assert api.pod_names() == []
    commit_restore(trial.store, trial.restore_id)
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]


def test_a_pod_too_small_for_what_is_asked_for_now_is_followed_by_one_of_that_size(
    trial, api, capfd
):
    recorded = read_plan(trial.store, trial.restore_id).to_run[0].resources["CPU"]
    result = trial.run(trainable="tests.support.experiments.asking:three_cpus")
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 2)
    assert [base(pod)["resources"]["limits"]["cpu"] for pod in api.created] == [
        f"{recorded:g}",
        "3",
    ]
    log = capfd.readouterr().out
    assert (
        "Attempt 1 ran nothing, because its pod was too small: a trial asks for CPU 3 now." in log
    )
    assert trial.failures == ()
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]
    assert api.pod_names() == []


def test_a_pod_that_cannot_start_says_why_and_is_no_failed_attempt(trial, api):
    with pytest.raises(
        AirflowException, match=r"was given up: Image cannot be pulled.*ErrImagePull"
    ):
        trial.run(image="registry.example.com/typo:1")
    api.kubelet.has_room = False
    with pytest.raises(AirflowException, match="took too long to be scheduled"):
        trial.run(startup_timeout_seconds=3)
    assert trial.failures == ()
    api.wait_for(lambda pods: not pods)
    with pytest.raises(AirflowException, match=r"could not be created: 422.*env\[0\].name|422"):
        trial.run(image="x", env={"not a name": "1"}, labels={"a": "not a label!"})
