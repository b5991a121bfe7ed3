"""Operations on failed Ray Tune experiments, for the person on call. No shell and no keys are needed.

Trigger this DAG by hand, choose the `operation`, and fill in what it needs:

| operation | needs |
|---|---|
| list quarantine | `experiment`: an experiment, or a prefix with experiments |
| release a trial | `experiment`, `trials` |
| undo the last commit | `experiment`, and its name again in `confirm` |
| restore only these trials | `experiment`, `trials`, `trainable`, `launcher` and the flags |

Only the tasks of that operation run, and the others are skipped. An address names its Airflow connection:
`s3://conn_id@bucket/path`. As written, `trainable` fits the experiments of `example_sweep.py`. With
TUNE_RESTORE_LAUNCHER=kubernetes in the environment, trials run in pods as in `nightly_recovery.py`.
"""

import os
from pathlib import Path

from airflow.sdk import DAG, Param, task

from airflow_tune_restore.operators.list_quarantine import ListQuarantineOperator
from airflow_tune_restore.operators.operation import Operation
from airflow_tune_restore.operators.release_trial import ReleaseTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.version_compat import AirflowFailException

IN_PODS = os.environ.get("TUNE_RESTORE_LAUNCHER") == "kubernetes"
POD = {"pod_template_file": os.environ.get("TUNE_RESTORE_POD_TEMPLATE"), "deferrable": True}

FIRST_TASKS = {
    Operation.LIST: "list_quarantine",
    Operation.RELEASE: "release_trial",
    Operation.UNDO: "undo_commit",
    Operation.RESTORE: "restore.plan",
}
NEEDED = {
    Operation.LIST: ["experiment"],
    Operation.RELEASE: ["experiment", "trials"],
    Operation.UNDO: ["experiment", "confirm"],
    Operation.RESTORE: ["experiment", "trials", "trainable"],
}


def is_missing(value: str | list[str]) -> bool:
    """Whether a field is empty, or one of its lines is."""
    lines = [value] if isinstance(value, str) else value
    return not (lines and all(line.strip() for line in lines))


with DAG(
    "tune_restore_admin",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["ray", "tune"],
    params={
        "operation": Param(
            Operation.LIST.value,
            type="string",
            enum=[operation.value for operation in Operation],
            description_md="What to do. Only **list quarantine** changes nothing.",
        ),
        "experiment": Param(
            "",
            type="string",
            examples=["s3://my_aws_conn@my-bucket/sweeps/exp", "s3://my_aws_conn@my-bucket/sweeps"],
            description_md="Address of the experiment. For **list quarantine** a prefix will do.",
        ),
        "trials": Param(
            [],
            type="array",
            items={"type": "string"},
            description_md="Trial ids, one per line, without an empty line. For **release a trial** "
            "and **restore only these trials**.",
        ),
        "confirm": Param(
            "",
            type="string",
            description_md="For **undo the last commit**: the name of the experiment, which is the last "
            "part of its address.",
        ),
        "trainable": Param(
            "example_sweep:train",
            type="string",
            section="Restore only these trials",
            description_md="`package.module:attribute`, importable where the trials run.",
        ),
        "launcher": Param(
            "local", type="string", enum=["local", "ray"], section="Restore only these trials",
            description_md="This worker, or the cluster of the connection `ray_jobs_default`.",
        ),
        "resume_errored": Param(
            default=True, type="boolean", section="Restore only these trials",
            description_md="Continue ERROR trials from their checkpoints.",
        ),
        "restart_errored": Param(
            default=False, type="boolean", section="Restore only these trials",
            description_md="Start ERROR trials over, if they are not resumed.",
        ),
        "stale_after": Param(
            1800, type="number", minimum=0, section="Restore only these trials",
            description_md="Seconds of silence after which the sweep is dead; 0 if you know that it is.",
        ),
    },
):  # fmt: skip

    @task.branch
    def choose(params: dict) -> str:
        """Return the first task of the operation."""
        operation = Operation(params["operation"])
        if missing := [name for name in NEEDED[operation] if is_missing(params[name])]:
            raise AirflowFailException(
                f"To {operation}, fill in {' and '.join(missing)}. Nothing was done."
            )
        return FIRST_TASKS[operation]

    listing = ListQuarantineOperator(
        task_id=FIRST_TASKS[Operation.LIST], prefix="{{ params.experiment }}"
    )
    release = ReleaseTrialOperator(
        task_id=FIRST_TASKS[Operation.RELEASE],
        experiment="{{ params.experiment }}",
        trials="{{ params.trials }}",
    )
    undo = UndoCommitOperator(
        task_id=FIRST_TASKS[Operation.UNDO],
        experiment="{{ params.experiment }}",
        confirm="{{ params.confirm }}",
        retries=0,
    )
    restore = TuneRestoreTaskGroup(
        experiments="{{ params.experiment }}",
        trainable="{{ params.trainable }}",
        launcher="kubernetes" if IN_PODS else "{{ params.launcher }}",
        runtime_env={"working_dir": str(Path(__file__).parent)},  # with ray: your code is uploaded
        stale_after="{{ params.stale_after }}",
        resume_errored="{{ params.resume_errored }}",
        restart_errored="{{ params.restart_errored }}",
        trials="{{ params.trials }}",
        trial_args=POD if IN_PODS else {},
        # the example's bug is fixed; a DAG of your own does not need this line
        env={"EXAMPLE_SWEEP_REPAIRED": "1"},
    )
    # its last tasks run whatever came before, so they are skipped one by one
    choose() >> [listing, release, undo, *restore.children.values()]
