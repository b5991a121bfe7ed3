"""The task group: its tasks, their order, and how a DAG processor serializes it."""

import inspect
import subprocess
import sys
from datetime import timedelta

import pytest
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, TaskGroup

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.group_arguments import (
    FindArguments,
    GroupArguments,
    PlanArguments,
    TaskArguments,
)
from airflow_tune_restore.operators.prepare_restores import PrepareRestoresOperator
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from tests.support import ROOT
from tests.support.airflow.names import DagSerialization, since_3_3


def dag_with(**arguments) -> DAG:
    with DAG("d") as dag:
        TuneRestoreTaskGroup(trainable="a:b", **arguments)
    return dag


def test_with_a_prefix_it_finds_plans_runs_and_commits():
    dag = dag_with(prefix="/data")
    assert {task.task_id: set(task.upstream_task_ids) for task in dag.tasks} == {
        "restore.find": set(),
        "restore.plan": {"restore.find"},
        "restore.trial": {"restore.plan"},
        "restore.commit": {"restore.plan", "restore.trial"},
        "restore.continue_search": {"restore.commit"},
        "restore.done": {"restore.trial", "restore.commit", "restore.continue_search"},
    }


def test_with_an_approval_a_preview_and_a_person_come_before_the_plan():
    users = [{"id": "1", "name": "alice"}]
    dag = dag_with(
        prefix="/data",
        require_approval=True,
        approval_timeout=timedelta(hours=8),
        approval_default="Reject",
        assigned_users=users,
        execution_timeout=timedelta(hours=1),
        max_trials=5,
        plan_args={"strategy": "per_trial"},
        retries=4,
    )
    preview, approve, plan, commit = (
        dag.task_dict[f"restore.{name}"] for name in ("preview", "approve", "plan", "commit")
    )
    assert preview.upstream_task_ids == {"restore.find"}
    assert approve.upstream_task_ids == {"restore.preview"}
    assert plan.upstream_task_ids == {"restore.find", "restore.approve"}
    assert (
        (preview.max_trials, preview.strategy)
        == (plan.max_trials, plan.strategy)
        == (5, "per_trial")
    )
    assert (approve.defaults, approve.assigned_users) == (["Reject"], users)
    waits = {getattr(approve, name, None) for name in ("response_timeout", "execution_timeout")}
    assert waits - {None} == {timedelta(hours=8)}  # and not that of the tasks that work
    assert (preview.execution_timeout, preview.retries, approve.retries) == (
        timedelta(hours=1),
        4,
        4,
    )
    assert commit.previewed.key == plan.previewed.key == "outcomes"
    again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert again.task_dict["restore.approve"].task_type == "ApproveRestoresOperator"


def test_without_a_timeout_an_approval_waits_for_ever():
    dag = dag_with(
        prefix="/data", require_approval=True, default_args={"execution_timeout": timedelta(1)}
    )
    approve = dag.task_dict["restore.approve"]
    assert getattr(approve, "response_timeout", None) is approve.execution_timeout is None


def test_with_experiments_it_looks_for_none():
    assert "restore.find" not in dag_with(experiments=["/data/a"]).task_dict


@pytest.mark.parametrize("arguments", [{}, {"prefix": "/a", "experiments": ["/a/b"]}])
def test_it_takes_a_prefix_or_experiments(arguments):
    with pytest.raises(InvalidInputError, match="either prefix= or experiments="):
        dag_with(**arguments)


def test_the_last_task_fails_with_a_trial_and_survives_a_skip():
    dag = dag_with(prefix="/data")
    assert dag.leaves == [dag.task_dict["restore.done"]]
    assert dag.task_dict["restore.done"].trigger_rule == "none_failed"
    assert dag.task_dict["restore.commit"].trigger_rule == "all_done"


def test_every_task_is_retried_unless_told_otherwise():
    dag = dag_with(prefix="/data", trial_args={"retries": 5})
    assert dag.task_dict["restore.trial"].retries == 5
    assert {dag.task_dict[f"restore.{t}"].retries for t in ("find", "plan", "commit")} == {1}


@pytest.mark.parametrize("launcher", ["local", "ray", "kubernetes"])
def test_a_named_searcher_reaches_whoever_plans_or_runs(launcher):
    dag = dag_with(prefix="/data", search_alg="m:searcher", launcher=launcher)
    plan, trial, samples = (
        dag.task_dict[f"restore.{t}"] for t in ("plan", "trial", "continue_search")
    )
    assert plan.search_alg == "m:searcher"
    for mapped in (trial, samples):
        assert mapped.partial_kwargs["search_alg"] == "m:searcher"
        assert "search_alg" in mapped.template_fields


def test_a_runner_user_reaches_whoever_starts_runners():
    dag = dag_with(prefix="/data", runner_user="tune")
    plan, trial, samples = (
        dag.task_dict[f"restore.{t}"] for t in ("plan", "trial", "continue_search")
    )
    assert plan.runner_user == "tune"
    for mapped in (trial, samples):
        assert mapped.partial_kwargs["runner_user"] == "tune"
        assert "runner_user" in mapped.template_fields
        assert "run_as_user" not in mapped.partial_kwargs


def test_default_args_of_the_dag_win():
    with DAG("d", default_args={"retries": 7, "owner": "me"}) as dag:
        TuneRestoreTaskGroup(trainable="a:b", prefix="/data")
    assert {task.retries for task in dag.tasks} == {7}
    assert {task.owner for task in dag.tasks} == {"me"}


def test_it_survives_serialization():
    dag = dag_with(prefix="s3://minio@bucket/a", env={"A": "b"}, health={"errored"})
    again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert again.task_dict["restore.trial"].map_index_template == "{{ task.trial['label'] }}"
    assert again.task_dict["restore.find"].prefix == "s3://minio@bucket/a"


def test_arguments_reach_the_tasks():
    dag = dag_with(
        prefix="/data",
        health={"interrupted"},
        wait=False,
        stale_after=5,
        resume_errored=True,
        max_active_trials=3,
        plan_args={"strategy": "per_trial"},
    )
    find, plan, trial = (dag.task_dict[f"restore.{name}"] for name in ("find", "plan", "trial"))
    assert (find.health, find.wait, find.stale_after) == ({"interrupted"}, False, 5)
    assert (plan.resume_errored, plan.strategy, plan.stale_after) == (True, "per_trial", 5)
    assert trial.max_active_tis_per_dagrun == 3


def test_arguments_of_the_sensor_the_plan_and_every_task_work_directly():
    dag = dag_with(
        prefix="/data",
        include=["team_a/**"],
        max_depth=2,
        timeout=60,
        strategy="per_trial",
        allow_scratch="{{ params.scratch }}",
        lease_ttl=timedelta(hours=1),
        check_timeout=99,
        retries=3,
        retry_delay=timedelta(seconds=7),
        execution_timeout=timedelta(hours=5),
        pool="gpu",
        queue="large",
        trial_args={"retries": 9},
        group_display_name="Restore",
    )
    find, plan = (dag.task_dict[f"restore.{name}"] for name in ("find", "plan"))
    assert (find.include, find.max_depth, find.timeout) == (["team_a/**"], 2, 60)
    assert (plan.strategy, plan.allow_scratch) == ("per_trial", "{{ params.scratch }}")
    assert (plan.lease_ttl, plan.check_timeout) == (timedelta(hours=1), 99)
    samples = dag.task_dict["restore.continue_search"]
    assert samples.partial_kwargs["check_timeout"] == 99
    assert {task.task_id: task.retries for task in dag.tasks if task.retries != 3} == {
        "restore.trial": 9
    }
    for task in dag.tasks:
        assert (task.pool, task.queue) == ("gpu", "large")
        assert task.execution_timeout == timedelta(hours=5)
        assert task.retry_delay == timedelta(seconds=7)
    assert dag.task_group.get_child_by_label("restore").group_display_name == "Restore"


def test_an_executor_of_the_trials_is_that_of_no_other_task():
    """`executor_config` cannot be mapped: all trials have the same."""
    on_ray = {"executor": "RayExecutor", "executor_config": {"num_cpus": 2}}
    dag = dag_with(prefix="/data", trial_args=on_ray)
    found = {task.task_id: (task.executor, task.executor_config) for task in dag.tasks}
    assert found.pop("restore.trial") == tuple(on_ray.values())
    assert all(executor is None and not config for executor, config in found.values())


def test_they_survive_serialization_and_win_over_default_args():
    with DAG("d", default_args={"retries": 7, "pool": "a"}) as dag:
        TuneRestoreTaskGroup(trainable="a:b", prefix="/data", retries=2, default_args={"pool": "b"})
    again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert {(task.retries, task.pool) for task in again.tasks} == {(2, "b")}


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("strategi", "strategy"),
        ("retry", "retries"),
        ("includes", "include"),
        ("trainabel", "trai"),
        ("more", ""),
    ],
)
def test_an_unknown_argument_is_refused_with_the_right_name(name, right):
    with pytest.raises(InvalidInputError, match=f"no argument {name}\\..*{right}"):
        dag_with(prefix="/data", **{name: 1})


def test_arguments_of_a_search_need_a_prefix():
    with pytest.raises(InvalidInputError, match="include, timeout needs prefix="):
        dag_with(experiments=["/a"], include="b", timeout=60)


def arguments_of(*functions) -> set[str]:
    return {name for each in functions for name in inspect.signature(each).parameters} - {
        "self", "kwargs", "task_id", "experiments", "launcher",
    }  # fmt: skip


def test_every_argument_of_sensor_and_plan_can_be_given_to_the_group():
    own = set(inspect.signature(TuneRestoreTaskGroup.__init__).parameters)
    sensor = arguments_of(FailedTuneExperimentSensor.__init__, BaseSensorOperator.__init__)
    assert own | FindArguments.__annotations__.keys() >= sensor
    assert sensor >= FindArguments.__annotations__.keys()
    plan = arguments_of(PrepareRestoresOperator.__init__)
    assert own | PlanArguments.__annotations__.keys() >= plan
    assert plan >= PlanArguments.__annotations__.keys()


@since_3_3
def test_the_other_arguments_are_those_of_airflow():
    assert arguments_of(BaseOperator.__init__) >= TaskArguments.__annotations__.keys()
    assert arguments_of(TaskGroup.__init__) >= GroupArguments.__annotations__.keys()
    assert arguments_of(TaskGroup.__init__) - {"group_id"} == GroupArguments.__annotations__.keys()


def test_max_attempts_reaches_the_plan():
    dag = dag_with(prefix="/data", max_attempts=3)
    assert dag.task_dict["restore.plan"].max_attempts == 3


@pytest.mark.parametrize("name", ["ignore_tuner", "trust_name"])
def test_choices_about_the_trainable_reach_all_that_plan(name):
    dag = dag_with(prefix="/data", **{name: "{{ params.chosen }}"})
    tasks = [dag.task_dict[f"restore.{task}"] for task in ("plan", "continue_search")]
    assert {task.template_fields.count(name) for task in tasks} == {1}
    assert getattr(tasks[0], name) == "{{ params.chosen }}"
    assert tasks[1].partial_kwargs[name] == "{{ params.chosen }}"


POD = {"image": "registry.example.com/sweeps:1", "namespace": "sweeps", "deferrable": True}


def test_on_kubernetes_trials_and_samples_run_in_pods():
    dag = dag_with(prefix="/data", launcher="kubernetes", trial_args=POD, env={"A": "b"})
    trial, samples = dag.task_dict["restore.trial"], dag.task_dict["restore.continue_search"]
    names = [task.operator_class.__name__ for task in (trial, samples)]
    assert names == ["RestoreTrialKubernetesOperator", "ContinueSearchKubernetesOperator"]
    for task in (trial, samples):
        assert POD.items() <= task.partial_kwargs.items()
        assert task.partial_kwargs["env"] == {"A": "b"}
    # the image has the trainable, not the worker: nothing is asked of that
    assert dag.task_dict["restore.plan"].launcher == "kubernetes"
    again = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert again.task_dict["restore.trial"].map_index_template == "{{ task.trial['label'] }}"


def test_samples_may_have_pods_of_another_size():
    dag = dag_with(
        prefix="/data",
        launcher="kubernetes",
        trial_args=POD,
        continue_search_args={"concurrent_trials": 8, "deferrable": False},
    )
    samples = dag.task_dict["restore.continue_search"].partial_kwargs
    assert (samples["concurrent_trials"], samples["deferrable"]) == (8, False)
    assert "concurrent_trials" not in dag.task_dict["restore.trial"].partial_kwargs


def test_without_the_provider_only_pods_are_missing():
    code = (
        "from tests.support.airflow import home as airflow_home\n"
        "from airflow.sdk import DAG\n"
        "import sys; sys.modules['airflow.providers.cncf.kubernetes'] = None\n"
        "from airflow_tune_restore.task_group import TuneRestoreTaskGroup\n"
        "with DAG('d'):\n"
        "    TuneRestoreTaskGroup('a', trainable='a:b', prefix='/data')\n"
        "    TuneRestoreTaskGroup('b', trainable='a:b', prefix='/data', launcher='kubernetes')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "InvalidInputError" in done.stderr, done.stderr
    assert "the package apache-airflow-providers-cncf-kubernetes" in done.stderr
    assert "pip install 'airflow-tune-restore[kubernetes]'" in done.stderr
