"""One pod a trial: the real operator and client against an emulated cluster, real Ray in the pods.

More of it: slow/test_more_kubernetes_pods.py.
"""

import pytest

from airflow_tune_restore.operators.run_tune_sweep import RunTuneSweepOperator
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.version_compat import AirflowException
from tests.support.experiments.built import make_experiment, make_row
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


def test_the_script_of_a_sweep_runs_in_a_pod_of_its_size(api, tmp_path):
    """It copies what a sweep has left: first one with a failed trial, then a finished one."""
    rows = [make_row("a"), make_row("b", status="ERROR")]
    made = {name: make_experiment(tmp_path / name, rows[:n]) for name, n in (("x", 2), ("y", 1))}
    for name, source in made.items():
        place = tmp_path / "sweeps" / name
        place.parent.mkdir(exist_ok=True)
        sweep = RunTuneSweepOperator(
            **pods.arguments(
                task_id="sweep",
                launcher="kubernetes",
                entrypoint=f'cp -r {source}/. "$TUNE_RESTORE_EXPERIMENT" && echo $TUNE_RESTORE_CPUS CPUs',
                experiment=str(place),
                trainable="tests.trainables:counting",
                concurrent_trials=2,
            )
        )
        context = pods.pod_context()
        if name == "x":
            with pytest.raises(AirflowException, match=r"1 of 2 trials finished.*: b \(ERROR\)"):
                sweep.execute(context)
        else:
            assert sweep.execute(context) == context["ti"].pushed["return_value"]
            assert context["ti"].pushed["return_value"]["trials_run"] == 1
    assert [base(pod)["resources"]["limits"]["cpu"] for pod in api.created] == ["2", "2"]
    said = [line for life in api.kubelet.pods.values() for _, line in life.said]
    assert said.count("2 CPUs") == len(made)
    assert api.pod_names() == []
