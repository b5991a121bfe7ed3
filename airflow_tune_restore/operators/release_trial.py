"""Releases trials from quarantine."""

from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_ids, parse_text
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.checked_operator import CheckedOperator
from airflow_tune_restore.hooks.dag_runs import ask_dag_run, log_waits, name_dag_run
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.hooks.xcom_size import first_fitting
from airflow_tune_restore.restore.release import describe_released, release_trials


class ReleaseTrialOperator(CheckedOperator):
    """Lets quarantined trials of one experiment run again: their failures so far no longer count.

    All of them are released, or none: if one does not exist or is not in quarantine, the task fails and
    changes nothing. While a restore holds the lease of the experiment, the task fails, and a retry may
    succeed. Returns one mapping per trial: `experiment`, `trial_id`, `released_at` (ISO 8601, UTC) and
    `failures` (how many failed attempts no longer count); as many as fit into an XCom, the log has all.

    Args:
        experiment: Address of the experiment, as `s3://conn_id@bucket/path` or a local path. (templated)
        trials: Ids of the trials: a list, or text with commas. (templated)
        storage_conn_id: Airflow connection for the experiment; by default the one in the address.
            (templated)
    """

    template_fields = ("experiment", "trials", "storage_conn_id")
    ui_color = "#fbe7d9"

    def __init__(
        self, *, experiment: str, trials: Any, storage_conn_id: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.trials = trials
        self.storage_conn_id = storage_conn_id
        self.check_literals(vars(self))

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Release the trials."""
        with as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            place = hook.address(self.experiment)
            trial_ids = parse_ids("trials", self.trials)
            released = release_trials(
                *(hook.open(place), trial_ids),
                holder=name_dag_run(context),
                on_wait=log_waits(self.log),
                ask_holder=ask_dag_run,
            )
        for trial_id, history in released.items():
            self.log.info("%s", describe_released(trial_id, str(place), history))
        return first_fitting(
            {
                "experiment": str(place),
                "trial_id": trial_id,
                "released_at": history.released_at,
                "failures": len(history.released),
            }
            for trial_id, history in released.items()
        )
