"""Waits for Ray Tune experiments that need restoring."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from airflow_tune_restore.arguments import parse_health, parse_text
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, RESTORABLE
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_search import (
    Search,
    build_item,
    build_search,
    log_evidence,
    log_found,
    survey,
)
from airflow_tune_restore.triggers.experiment_sensor import ExperimentSensorTrigger


class FailedTuneExperimentSensor(BaseSensorOperator):
    """Waits until experiments below a prefix need restoring, and returns them.

    The returned list has one small item an experiment (`experiment`, `name`, `health`, `reason`,
    `trials`, `samples_left`, `last_write`), ready for `BuildRestorePlanOperator(experiments=…)`. An
    experiment that cannot be read is logged with the reason; the others are found all the same.
    All of `BaseSensorOperator` works as usual: `poke_interval`, `timeout`, `mode`, `soft_fail`, ….

    Args:
        prefix: Where to look: a local path or a URL, as `s3://conn_id@bucket/path`. (templated)
        health: Which experiments to return: words of `errored`, `interrupted`, `finished`, `running`,
            `not_started`, `unreadable`.
        stale_after: Silence after which an unfinished experiment counts as dead; a timedelta or
            seconds. Default 30 minutes. (templated)
        storage_conn_id: Airflow connection to open the prefix with; by default the one in the prefix,
            or the environment's credentials. (templated)
        wait: False looks once and is skipped if there is nothing, as a scheduled scan wants it.
        deferrable: Wait in the triggerer, without a worker slot; sensors that look for experiments in the
            same place in the same way share one poll. Give it `retries` of 1 or more.
        include: Report only experiments that match one of these globs, or lie below a directory that
            does. Without a slash a glob is held against every name, with slashes against the path from
            the prefix (`team_a/**`). (templated)
        exclude: Leave out, and do not list, directories that match one of these. (templated)
        max_depth: How many levels below the prefix experiments may lie.
        use_index: Remember in `<prefix>/.tune_restore` what was read, so that the next scan, of whoever,
            gets only what has changed. A prefix that cannot be written to is scanned without.
        ray_conn_id: Connection `ray_jobs` of a cluster: what looks dead is running all the same if a live
            job there names it, by its address or its name, in its command line or metadata. (templated)
    """

    template_fields = (
        "prefix",
        "stale_after",
        "storage_conn_id",
        "include",
        "exclude",
        "ray_conn_id",
    )
    ui_color = "#e8f1f8"

    def __init__(  # noqa: PLR0913  one line of a DAG has its options by name
        self,
        *,
        prefix: str,
        health: Iterable[str] = RESTORABLE,
        stale_after: timedelta | float | str = DEFAULT_STALE_AFTER,
        storage_conn_id: str | None = None,
        wait: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        include: Sequence[str] | str = (),
        exclude: Sequence[str] | str = (),
        max_depth: int = MAX_DEPTH,
        use_index: bool = True,
        ray_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prefix = prefix
        self.health = health
        self.stale_after = stale_after
        self.storage_conn_id = storage_conn_id
        self.wait = wait
        self.deferrable = deferrable
        self.include = include
        self.exclude = exclude
        self.max_depth = max_depth
        self.use_index = use_index
        self.ray_conn_id = ray_conn_id

    def execute(self, context: Context) -> Any:
        """Look; wait in the way that was asked for."""
        if not self.wait:
            if found := self._look():
                return found
            raise AirflowSkipException(f"Nothing to restore under {self.prefix}.")
        if not self.deferrable:
            return super().execute(context)
        # a trigger that fires at once fails its task at random in Airflow 3.3.2: look before deferring
        if found := self._look():
            return found
        if self.timeout <= 0:
            return self._time_out()
        search = self._search()
        return self.defer(
            trigger=ExperimentSensorTrigger(
                prefix=str(search.place),
                health=sorted(parse_health(self.health)),
                stale_after_seconds=search.stale_after.total_seconds(),
                poke_interval=self.poke_interval,
                include=list(search.selection.include),
                exclude=list(search.selection.exclude),
                max_depth=search.selection.max_depth,
                use_index=self.use_index,
                ray_conn_id=search.ray_conn_id,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        del context
        found = self._look()
        return PokeReturnValue(is_done=bool(found), xcom_value=found)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what the trigger found."""
        del context
        if "error" in event:
            raise AirflowFailException(event["error"])
        found: list[dict[str, Any]] = event["experiments"]
        log_found(found, self.log)  # type: ignore[arg-type]  # Airflow's own kind of logger
        return found

    def _look(self) -> list[dict[str, Any]]:
        log: Any = self.log  # Airflow's own kind of logger
        with as_airflow_errors():
            search, wanted = self._search(), parse_health(self.health)
            found = [report for report in survey(search, log) if report.health in wanted]
        log_evidence(found, log)
        return [build_item(search.place, report) for report in found]

    def _search(self) -> Search:
        return build_search(
            self.prefix,
            storage_conn_id=parse_text(self.storage_conn_id),
            stale_after=self.stale_after,
            include=self.include,
            exclude=self.exclude,
            max_depth=self.max_depth,
            use_index=self.use_index,
            ray_conn_id=parse_text(self.ray_conn_id),
        )

    def _time_out(self) -> None:
        message = f"Nothing to restore under {self.prefix}, and a timeout of 0 s."
        if self.soft_fail or self.never_fail:
            raise AirflowSkipException(message)
        raise AirflowSensorTimeout(message)
