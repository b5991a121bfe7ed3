"""Lists the trials in quarantine below a prefix."""

from typing import Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.experiments.parameters import find_varying
from airflow_tune_restore.experiments.read import StateReader, read_experiment
from airflow_tune_restore.experiments.state import Keep
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.checked_operator import CheckedOperator
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.xcom_size import first_fitting
from airflow_tune_restore.operators.operation import describe_release
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, counted, printable
from airflow_tune_restore.restore.columns import render
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.quarantine import read_quarantines
from airflow_tune_restore.restore.summary import TABLE_WIDTH

MAX_TRIALS = 1000
"""With more trials, or more than fit into an XCom, log and XCom leave out the rest."""


class ListQuarantineOperator(CheckedOperator):
    """Lists the trials in quarantine of all experiments at or below a prefix. It changes nothing.

    The log has a table: since when, the cause with file and line, and how many failed attempts count;
    then how to release them. Returns one mapping per trial: `experiment` (address), `trial_id`,
    `parameters` (those in which the trials of the experiment differ), `since` (ISO 8601, UTC; "" if
    unknown), `reason`, `cause`, `place` (file and line), `message` and `failures`.

    Args:
        prefix: Address of an experiment, or of a prefix with experiments, as
            `s3://conn_id@bucket/path` or a local path. (templated)
        storage_conn_id: Airflow connection for the prefix; by default the one in the address. (templated)
    """

    template_fields = ("prefix", "storage_conn_id")
    ui_color = "#fbe7d9"

    def __init__(self, *, prefix: str, storage_conn_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prefix = prefix
        self.storage_conn_id = storage_conn_id
        self.check_literals(vars(self))

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Scan the prefix, and read the ledgers of its experiments."""
        del context
        with as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            place = hook.address(self.prefix)
            reports = hook.scan(place, stale_after=DEFAULT_STALE_AFTER)
            quarantines = read_quarantines(hook.open(place), reports)
        items: list[dict[str, Any]] = []
        for report, trials, warning in quarantines:
            address = place.at(report.experiment)
            if warning:
                self.log.warning("%s: %s", address, printable(warning, NOTE_LENGTH))
            if trials:
                parameters = self._parameters(hook, address)
                items += [
                    _item(address, trial_id, history, parameters.get(trial_id, {}))
                    for trial_id, history in trials.items()
                ]
        listed = first_fitting(items[:MAX_TRIALS])
        if len(listed) < len(items):
            self.log.warning(
                "%d trials in quarantine; the list has the first %d. List a smaller prefix.",
                *(len(items), len(listed)),
            )
        self._log(place, len(reports), listed)
        return listed

    def _parameters(
        self, hook: ExperimentStorageHook, address: Address
    ) -> dict[str, dict[str, str]]:
        """Return the parameters in which the trials of an experiment differ, by trial id."""
        try:
            experiment = read_experiment(
                hook.open(address),
                read_state=StateReader(Keep(terminated_rows=False, parameters=True)),
            )
        except TuneRestoreError as error:
            self.log.warning("%s: %s", address, printable(str(error), NOTE_LENGTH))
            return {}
        return find_varying(experiment.trials).by_trial

    def _log(self, place: Address, experiments: int, items: list[dict[str, Any]]) -> None:
        if not experiments:
            self.log.warning("There is no Tune experiment at or below %s.", place)
            return
        self.log.info(
            "%s in quarantine in %s at or below %s.",
            *(counted(len(items), "trial"), counted(experiments, "experiment"), place),
        )
        if not items:
            return
        for line in _table(items).splitlines():
            self.log.info("%s", line)
        by_experiment: dict[str, list[str]] = {}
        for item in items:
            by_experiment.setdefault(item["experiment"], []).append(item["trial_id"])
        for address, trial_ids in by_experiment.items():
            how = printable(describe_release(address, trial_ids), NOTE_LENGTH)
            self.log.info("To release, fix the cause first: %s", how)


def _item(
    address: Address, trial_id: str, history: History, parameters: dict[str, str]
) -> dict[str, Any]:
    last = history.failures[-1] if history.failures else None
    return {
        "experiment": str(address),
        "trial_id": trial_id,
        "parameters": parameters,
        "since": last.ended_at if last else "",
        "reason": history.quarantined,
        "cause": last.cause if last else "",
        "place": last.place if last else "",
        "message": last.message if last else "",
        "failures": len(history.failures),
    }


def _table(items: list[dict[str, Any]]) -> str:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("experiment", "trial", "parameters", "since (UTC)", "cause", "failed attempts"):
        table.add_column(heading, overflow="fold")
    for item in items:
        cause = item["reason"] + (f": {item['message']}" if item["message"] else "")
        parameters = ", ".join(f"{name}={value}" for name, value in item["parameters"].items())
        since = item["since"][:19] or "-"
        cells = (item["experiment"], item["trial_id"], parameters or "-", since, cause)
        table.add_row(*map(printable, cells), str(item["failures"]))
    return render(table, TABLE_WIDTH)
