"""One pod a trial: the real operator and client against an emulated cluster, real Ray in the pods.

More of it: slow/test_more_kubernetes_pods.py.
"""

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import read_plan
from tests.support.kubernetes import pods
from tests.support.kubernetes.api import base


def test_a_pod_too_small_for_what_is_asked_for_now_is_followed_by_one_of_that_size(
    trial, api, capfd
):
    recorded = read_plan(trial.store, trial.restore_id).to_run[0].resources["CPU"]
    operator = trial.operator(
        trainable="tests.support.experiments.asking:three_cpus",
        labels={"team": "vision"},
        service_account_name="runner",
    )
    context = pods.pod_context()
    result = operator.execute(context)
    assert (result["status"], result["iteration"], result["attempt"]) == ("TERMINATED", 6, 2)
    assert context["ti"].pushed["return_value"] == result
    assert [base(pod)["resources"]["limits"]["cpu"] for pod in api.created] == [
        f"{recorded:g}",
        "3",
    ]
    log = capfd.readouterr().out
    assert (
        "Attempt 1 ran nothing, because its pod was too small: a trial requests CPU 3 now." in log
    )
    assert "iteration 6, score=12" in log
    assert "::tune-restore-progress::" not in log
    for number, pod in enumerate(api.created, 1):
        labels = pod["metadata"]["labels"]
        assert labels["tune-restore/experiment"] == "errored"
        assert labels["tune-restore/trial"] == trial.item["trial_id"]
        assert labels["tune-restore/restore"] == trial.restore_id
        assert (labels["tune-restore/attempt"], labels["team"]) == (f"{number}", "vision")
        assert pod["spec"]["serviceAccountName"] == "runner"
    assert trial.failures == ()
    assert api.pod_names() == []
    commit_restore(trial.store, trial.restore_id)
    assert trial.iterations() == [1, 2, 3, 4, 5, 6]
