"""Waits for Ray Tune experiments that need restoring."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from airflow.sdk import BaseSensorOperator, Context, PokeReturnValue

from airflow_tune_restore.arguments import parse_addresses, parse_health, parse_text
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER, RESTORABLE
from airflow_tune_restore.experiments.scan_filter import MAX_DEPTH
from airflow_tune_restore.hooks import experiment_search
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.checked_operator import CheckedOperator
from airflow_tune_restore.hooks.dag_runs import ask_dag_run
from airflow_tune_restore.hooks.experiment_storage import ExperimentStorageHook
from airflow_tune_restore.hooks.window import Window
from airflow_tune_restore.hooks.xcom_size import unpack
from airflow_tune_restore.triggers.experiment_sensor import ExperimentSensorTrigger
from airflow_tune_restore.version_compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    conf,
)

CLOCKS_DIFFER_SECONDS = 60.0
"""A deferral that Airflow ends so shortly before the end of the window was to last until then."""


class FailedTuneExperimentSensor(CheckedOperator, BaseSensorOperator):
    """Waits until experiments below a prefix need restoring, and returns them.

    The returned list has one small item per experiment (`experiment`, `name`, `health`, `reason`,
    `trials`, `samples_left`, `last_write`, `shares_prefix`), for
    `BuildRestorePlanOperator(experiments=…)`. A list that would be too large for an XCom is packed, and
    has addresses alone. An unreadable experiment is logged with the reason, and the others are found. The
    XCom `left_alone` names those that are neither returned nor finished (running, leased, unreadable),
    for `CommitRestoreOperator`. The arguments of `BaseSensorOperator` work as usual: `poke_interval`,
    `timeout`, `mode`, `soft_fail`.

    Args:
        prefix: Place to search: a local path or a URL, as `s3://conn_id@bucket/path`. (templated)
        health: Which experiments to return: any of `errored`, `interrupted`, `finished`, `running`,
            `not_started`, `unreadable`.
        stale_after: Silence after which an unfinished experiment counts as dead; a timedelta or
            seconds. Default 30 minutes. (templated)
        storage_conn_id: Airflow connection to open the prefix with; by default the one in the prefix,
            or the environment's credentials. (templated)
        wait: Whether to wait until there is an experiment. False searches once and skips the task if
            there is none, for scheduled scans.
        deferrable: Whether to wait in the triggerer, without a worker slot. Sensors with the same search
            share one poll. Set `retries` to 1 or more.
        include: Globs; only experiments that match one, or are below a directory that does, are returned.
            A glob without a slash matches any name in the path, one with slashes matches the path from
            the prefix (`team_a/**`). (templated)
        exclude: Globs of directories that are not searched. (templated)
        max_depth: How many levels below the prefix experiments may be.
        use_index: Whether results are cached in `<prefix>/.tune_restore`, so that the next scan reads
            only what has changed. A prefix that is not writable is scanned without a cache.
        ray_conn_id: Connection `ray_jobs` of a cluster. An experiment also counts as running if a live
            job of this cluster names it, by address or name, in its command line or metadata. (templated)
        until, max_duration: As in `BuildRestorePlanOperator`. At the end of the window, a sensor that
            still waits skips its task. (templated)
    """

    template_fields = (
        "prefix",
        "stale_after",
        "storage_conn_id",
        "include",
        "exclude",
        "ray_conn_id",
        "until",
        "max_duration",
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
        until: str | None = None,
        max_duration: timedelta | float | str | None = None,
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
        self.until = until
        self.max_duration = max_duration
        self._window = Window()
        self._hook: ExperimentStorageHook | None = None
        self.check_literals(vars(self))

    def execute(self, context: Context) -> Any:
        """Search once; then wait, if `wait` is set, in the chosen mode."""
        if not self.wait:
            if found := self._find(context, is_last=True):
                return found
            raise AirflowSkipException(f"Nothing to restore under {self.prefix}.")
        if not self.deferrable:
            return super().execute(context)
        # a trigger that fires at once fails its task at random in Airflow 3.3.2: search before deferring
        if found := self._find_in_window(context):
            return found
        if self.timeout <= 0:
            return self._time_out()
        search = self._search()
        return self.defer(
            trigger=ExperimentSensorTrigger(
                health=self.health, poke_interval=self.poke_interval, **search.arguments()
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=min(self.timeout, self._window.seconds_left)),
        )

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Skip a task that was deferred until the end of its window."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            window = self._read_window(context)
            if window.seconds_left < CLOCKS_DIFFER_SECONDS:
                self._end_wait(window)
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        """Search once."""
        found = self._find_in_window(context)
        return PokeReturnValue(is_done=bool(found), xcom_value=found)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return what the trigger found."""
        if "error" in event:
            raise AirflowFailException(event["error"])
        found = event["experiments"]
        log: Any = self.log  # Airflow's own kind of logger
        with as_airflow_errors():
            experiment_search.log_found(parse_addresses(unpack(found)), log)
        if left_alone := event.get("left_alone"):  # not in an event of an older triggerer
            self._push_left_alone(context, left_alone)
        return experiment_search.fit_items(found, log)

    def _get_next_poke_interval(self, *arguments: Any) -> float:
        """Look again when the window ends, if that is sooner. Airflow calls this."""
        interval: float = super()._get_next_poke_interval(*arguments)
        return min(interval, self._window.seconds_left)

    def _find_in_window(self, context: Context) -> Any:
        """Search once; skip the task if nothing is found and the window has ended."""
        window = self._window = self._read_window(context)
        found = self._find(context, is_last=window.is_over)
        if window.is_over and not found:
            self._end_wait(window)
        return found

    def _read_window(self, context: Context) -> Window:
        with as_airflow_errors():
            return Window.of(context, self.until, self.max_duration)

    def _end_wait(self, window: Window) -> NoReturn:
        reason = (
            f"Nothing to restore under {self.prefix}. The window of this DAG run ended at {window}, so "
            "the task waits no longer; the next DAG run searches again."
        )
        self.log.info("%s", reason)  # Airflow's own line does not have the reason of a skip
        raise AirflowSkipException(reason)

    def _find(self, context: Context, *, is_last: bool) -> Any:
        log: Any = self.log  # Airflow's own kind of logger
        with as_airflow_errors():
            search, wanted = self._search(), parse_health(self.health)
            hook = self._hook = self._hook or ExperimentStorageHook()
            reports = experiment_search.survey(hook, search, log, ask_dag_run)
            found = [report for report in reports if report.health in wanted]
        experiment_search.log_evidence(found, log)
        if found or is_last:
            left_alone = experiment_search.build_left_alone(search.place, reports, wanted)
            self._push_left_alone(context, left_alone)
        items = experiment_search.build_items(search.place, reports, wanted)
        return experiment_search.fit_items(items, log)

    def _push_left_alone(self, context: Context, left_alone: dict[str, Any]) -> None:
        """Log the experiments that are not returned, and push them for the table of the commit."""
        log: Any = self.log  # Airflow's own kind of logger
        experiment_search.log_left_alone(left_alone, log)
        context["ti"].xcom_push(experiment_search.LEFT_ALONE_KEY, left_alone)

    def _search(self) -> experiment_search.Search:
        return experiment_search.build_search(
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
