"""Undoes the last commit of an experiment."""

from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.checked_operator import CheckedOperator
from airflow_tune_restore.hooks.dag_runs import ask_dag_run, log_waits, name_dag_run
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.hooks.xcom_size import first_fitting
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.location import Location

_BESIDE_BYTES = 32 * 1024
"""Room in the XCom for an address and three names."""


class UndoCommitOperator(CheckedOperator):
    """Undoes the last commit of one experiment: the state before it is the newest one again.

    It fails and changes nothing if something newer was written since, or if `confirm` is not the name of
    the experiment. While a restore holds the lease, the task fails, and a retry may succeed. Returns
    `experiment`, `restore_id`, `state_file` (that of the commit), `deleted` (all deleted files) and
    `newest`.

    Give it `retries=0`: if the task died after it had undone the commit, a retry would undo the commit
    before that one, too.

    Args:
        experiment: Address of the experiment, as `s3://conn_id@bucket/path` or a local path. (templated)
        confirm: Name of the experiment, the last part of its address, so that nobody undoes by accident.
            (templated)
        storage_conn_id: Airflow connection for the experiment; by default the one in the address.
            (templated)
    """

    template_fields = ("experiment", "confirm", "storage_conn_id")
    ui_color = "#fbe7d9"

    def __init__(
        self, *, experiment: str, confirm: str, storage_conn_id: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.confirm = confirm
        self.storage_conn_id = storage_conn_id
        self.check_literals(vars(self))

    def execute(self, context: Context) -> dict[str, Any]:
        """Undo the commit."""
        with as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            place = hook.address(self.experiment)
            name = Location.parse(place.uri).name
            if str(self.confirm).strip() != name:
                raise InvalidInputError(
                    f"confirm={self.confirm!r} is not the name of {place}. Nothing was undone. To undo "
                    f"its last commit, set confirm to {name!r}."
                )
            undone = undo_commit(
                hook.open(place),
                holder=name_dag_run(context),
                on_wait=log_waits(self.log),
                ask_holder=ask_dag_run,
            )
        self.log.info("%s", printable(undone.describe(str(place)), NOTE_LENGTH))
        return {
            "experiment": str(place),
            "restore_id": undone.restore_id,
            "state_file": undone.state_file,
            "newest": undone.newest,
            "deleted": first_fitting(undone.deleted, beside=_BESIDE_BYTES),
        }
