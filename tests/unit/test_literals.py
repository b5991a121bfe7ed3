"""Literals are refused when the DAG is parsed, so that Airflow shows the mistake with the DAG."""

from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DAG, Param

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.operators.list_quarantine import ListQuarantineOperator
from airflow_tune_restore.operators.release_trial import ReleaseTrialOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.sensors.failed_experiment import FailedTuneExperimentSensor
from airflow_tune_restore.task_group import TuneRestoreTaskGroup


def train(config):
    """Stand in for a trainable that was given as it is."""


SENSOR = [
    ("prefix", "", "must be a path or a URL"),
    ("prefix", "s3://key:secret@bucket/a", "contains a user and a password"),
    ("health", "dead", "dead is not among"),
    ("stale_after", "soon", "stale_after='soon' is not a number of seconds"),
    ("wait", "no", "wait='no' is neither True nor False"),
    ("wait", "{{ params.wait }}", "does not render a template in this argument"),
    ("max_depth", -1, "max_depth=-1 is less than zero"),
    ("max_depth", 2.9, "max_depth=2.9 is not a whole number"),
    ("max_depth", float("inf"), "max_depth=inf is not a whole number"),
    ("include", [1], "holds a value that is not a pattern"),
    ("include", 5, "include=5 is not a list of patterns"),
    ("include", {"a": 1}, "is not a list of patterns"),
    ("health", None, "health=None is not a list of words"),
    ("health", [["errored"]], r"\['errored'\] is not among"),
    ("prefix", Path("/a"), "must be a path or a URL as text"),
    ("prefix", "ftp://host/a", "ftp:// is not supported"),
    ("storage_conn_id", 5, "storage_conn_id=5 is not text"),
]
PLAN = [
    ("experiments", ["s3://key:secret@bucket/a"], "contains a user and a password"),
    ("experiments", [7], "neither an address nor an item"),
    ("experiments", 7, "experiments=7 is not a list of addresses"),
    ("experiments", Path("/a"), "is not a list of addresses"),
    ("experiments", ["ftp://host/a"], "ftp:// is not supported"),
    ("trials", 5, "trials=5 is not a list of ids"),
    ("imports", "my.mod", "imports='my.mod' is not a list of module names"),
    ("imports", [5], "not the name of a module"),
    ("env", ["x"], "is not a mapping"),
    ("resume_errored", "maybe", "resume_errored='maybe' is neither true nor false"),
    ("allow_scratch", "perhaps", "allow_scratch='perhaps' is neither true nor false"),
    ("resume_config", {"errored": "again"}, "errored='again' is not one of 'skip', 'resume'"),
    ("resume_config", "resume", "is not a mapping"),
    ("strategy", "together", "strategy='together' is not one of 'auto'"),
    ("launcher", "rey", "launcher='rey' is not one of local, ray, kubernetes"),
    ("launcher", ["ray"], "is not one of local, ray, kubernetes"),
    ("max_attempts", 0, "max_attempts=0 is less than one"),
    ("max_memory", "much", "max_memory='much' is not a number of bytes"),
    ("stale_after", -1, "stale_after=-1 is less than zero"),
    ("lease_ttl", "long", "lease_ttl='long' is not a number of seconds"),
    ("lease_ttl", 1e9, "lease_ttl is at most 86400 s"),
    (
        "lease_ttl",
        0,
        "lease_ttl=0 is less than 60 s: a restore that lives renews",
    ),
]
CODE = [
    ("trainable", lambda config: config, "give its place as text: trainable='package.module:attr"),
    ("trainable", train, f"trainable='{__name__}:train'"),
    ("trainable", " ", "names no trainable"),
    ("trainable", object(), "is an object of object"),
    ("param_space", {"lr": 1}, "is an object of dict"),
    ("param_space", Path("space.py"), "is an object of PosixPath"),
    ("trainable", Path("train.py"), "is an object of PosixPath"),
    ("search_alg", train, f"search_alg='{__name__}:train'"),
]
RUN = [("launcher", "rey", "launcher='rey'"), ("poll_interval", "often", "poll_interval='often'")]


@pytest.mark.parametrize(("name", "value", "words"), SENSOR)
def test_the_sensor_refuses_a_literal(name, value, words):
    with pytest.raises(InvalidInputError, match=words):
        FailedTuneExperimentSensor(task_id="find", **{"prefix": "/a", name: value})
    with DAG("d"), pytest.raises(InvalidInputError, match=words):
        FailedTuneExperimentSensor.partial(task_id="find", **{name: value})


@pytest.mark.parametrize(("name", "value", "words"), PLAN + CODE)
def test_the_plan_refuses_a_literal(name, value, words):
    with pytest.raises(InvalidInputError, match=words):
        BuildRestorePlanOperator(task_id="plan", **{"experiments": "/a", name: value})
    with DAG("d"), pytest.raises(InvalidInputError, match=words):
        BuildRestorePlanOperator.partial(task_id="plan", **{name: value})


@pytest.mark.parametrize(("name", "value", "words"), RUN + CODE)
def test_operators_that_run_trials_refuse_a_literal_mapped_or_not(name, value, words):
    given = {"trainable": "m:train", name: value}
    with pytest.raises(InvalidInputError, match=words):
        ContinueSearchOperator(task_id="samples", experiment="/a", **given)
    with DAG("d"), pytest.raises(InvalidInputError, match=words):
        RestoreTrialOperator.partial(task_id="trial", **given)


@pytest.mark.parametrize(("name", "value", "words"), CODE)
def test_operators_of_pods_refuse_a_literal(name, value, words):
    given = {"trainable": "m:train", name: value}
    with DAG("d"), pytest.raises(InvalidInputError, match=words):
        RestoreTrialKubernetesOperator.partial(task_id="trial", **given)


@pytest.mark.parametrize(
    ("name", "value", "words"), [each for each in SENSOR + PLAN + CODE if each[0] != "experiments"]
)
def test_the_group_refuses_a_literal(name, value, words):
    with DAG("d"), pytest.raises(InvalidInputError, match=words):
        TuneRestoreTaskGroup(**{"trainable": "m:train", "prefix": "/a", name: value})


@pytest.mark.parametrize(
    "operator", [UndoCommitOperator, ReleaseTrialOperator, ListQuarantineOperator]
)
@pytest.mark.parametrize("value", [None, Path("/a"), "ftp://host/a"])
def test_operators_of_the_admin_dag_refuse_an_address_mapped_or_not(operator, value):
    name = "prefix" if operator is ListQuarantineOperator else "experiment"
    others = {"confirm": "a"} if operator is UndoCommitOperator else {}
    others |= {"trials": "a"} if operator is ReleaseTrialOperator else {}
    with pytest.raises(InvalidInputError):
        operator(task_id="admin", **{name: value}, **others)
    with DAG("d"), pytest.raises(InvalidInputError):
        operator.partial(task_id="admin", **{name: value})


APPROVAL = [
    ({"require_approval": "yes"}, "require_approval='yes' is neither True nor False"),
    ({"approval_timeout": 60}, "approval_timeout needs require_approval=True"),
    (
        {"approval_default": "Reject", "assigned_users": []},
        "approval_default and assigned_users needs",
    ),
    ({"notifiers": []}, "notifiers needs require_approval=True"),
    ({"require_approval": True, "approval_timeout": 0}, "approval_timeout=0"),
    ({"require_approval": True, "approval_timeout": "{{ params.wait }}"}, "does not render"),
    (
        {"require_approval": True, "approval_timeout": 1, "approval_default": "yes"},
        "approval_default='yes' is not one of Approve, Reject",
    ),
    ({"require_approval": True, "approval_default": "Reject"}, "needs approval_timeout="),
    ({"require_approval": True, "assigned_users": ["me"]}, "is not a list of users"),
    ({"require_approval": True, "assigned_users": "me"}, "is not a list of users"),
    ({"require_approval": True, "assigned_users": {"id": "1"}}, "is not a list of users"),
]


@pytest.mark.parametrize(("given", "words"), APPROVAL)
def test_the_group_refuses_what_is_wrong_with_an_approval(given, words):
    with DAG("d"), pytest.raises(InvalidInputError, match=words):
        TuneRestoreTaskGroup(trainable="m:train", prefix="/a", **given)


def test_only_a_plan_may_do_without_a_trainable():
    BuildRestorePlanOperator(task_id="plan", experiments="/a", trainable=None)
    with DAG("d"), pytest.raises(InvalidInputError, match="trainable=None names no trainable"):
        TuneRestoreTaskGroup(trainable=None, prefix="/a")


def test_a_connection_may_open_a_store_that_the_environment_cannot():
    FailedTuneExperimentSensor(task_id="find", prefix="ftp://conn@host/a")
    BuildRestorePlanOperator(task_id="plan", experiments="ftp://host/a", storage_conn_id="conn")


def test_a_literal_for_the_trials_alone_is_refused_too():
    with DAG("d"), pytest.raises(InvalidInputError, match="launcher='rey'"):
        TuneRestoreTaskGroup(trainable="m:train", prefix="/a", trial_args={"launcher": "rey"})


def test_what_airflow_computes_is_checked_when_the_task_runs():
    with DAG("d", params={"resume": Param(default=True)}) as dag:
        TuneRestoreTaskGroup(
            trainable="{{ params.trainable }}",
            prefix="{{ params.prefix }}",
            launcher="{% if params.on %}ray{% endif %}",
            resume_errored=dag.param("resume"),
            resume_unfinished=lambda context, jinja_env: True,
            resume_config="{{ params.resume_config }}",
            stale_after="{{ params.silence }}",
            find_args={"include": ["{{ params.team }}/**"]},
            plan_args={"strategy": "{{ params.strategy }}", "max_memory": "{{ params.memory }}"},
        )
        BuildRestorePlanOperator(
            task_id="other",
            experiments=["/a", "{{ params.another }}"],
            lease_ttl=timedelta(hours=1),
        )
