"""The plan task: decides which trials of which experiments are restored, and takes the leases."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.configuration import conf

from airflow_tune_restore import arguments
from airflow_tune_restore.arguments import parse_text
from airflow_tune_restore.exceptions import ExperimentRunningError, InvalidInputError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import driver_jobs
from airflow_tune_restore.launch.account import runner_account
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.operators import xcom
from airflow_tune_restore.operators.experiment_batch import SkippedExperiments, map_experiments
from airflow_tune_restore.operators.trainable_check import TrainableCheck
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.printable import printable, share
from airflow_tune_restore.restore.choices import AUTO, DEFAULT_MAX_MEMORY_BYTES, PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.kept import describe_kept, in_dag
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import PreparedRestore, PrepareOptions, prepare_restore
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary

DEFAULT_LEASE_TTL = timedelta(minutes=15)
"""Longer than a retry delay or a full queue: nothing renews a lease while all its tasks wait."""

_SHOWN_LINES = 50
_RESUME_FLAGS = ("resume_unfinished", "resume_errored", "restart_errored", "resume_cut_short")
_SWITCHES = tuple(field.name for field in fields(PlanChoices) if field.type is bool)
"""The choices that are true or false: arguments of the same names."""


class BuildRestorePlanOperator(BaseOperator):
    """Plans restores, takes their leases, and returns one small item per trial to run.

    The items of all experiments are one flat list, for
    `RestoreTrialOperator.partial(…).expand(trial=plan.output)`. The restores are under
    `plan.output["restores"]`, for `CommitRestoreOperator`. A running experiment is never touched. An
    experiment that is leased, unreadable or does not fit is logged, and the others are restored. The
    same happens after an unexpected error; `plan.output["unexpected"]` then names the experiment, for a
    `CheckRestoresOperator` at the end. A retry continues its own restores. With nothing to restore the
    task is skipped, and its log shows why.

    Args:
        experiments: The sensor's output, a list of addresses, or one address, as
            `s3://conn_id@bucket/path` or a local path. (templated)
        resume_unfinished: Whether PENDING, RUNNING and PAUSED trials are resumed; otherwise they become
            TERMINATED.
        resume_errored: Whether ERROR trials are resumed from their latest checkpoint.
        restart_errored: Whether ERROR trials start over, under new ids. `resume_errored` wins over it.
        resume_cut_short: Whether trials are resumed that `fail_fast` marked TERMINATED when another
            trial failed.
        resume_config: `{"finished": …, "unfinished": …, "errored": …, "cut_short": …}` with `skip`,
            `resume` or `restart`, instead of the flags.
        trainable: `package.module:attribute` or a name registered with Tune. If given, it is checked
            before anything is leased.
        param_space: `package.module:attribute` of a re-specified param_space.
        search_alg: `package.module:attribute` of a searcher, for samples whose own searcher is lost with
            `tuner.pkl`. Without it, an experiment with only such samples left is refused.
        imports: Modules that the check imports first.
        strategy, fresh_budget, trim_results, remember_scheduler, allow_scratch, newest_checkpoint,
            ignore_tuner, max_attempts: As in `airflow_tune_restore.restore.choices.PlanChoices`.
        max_memory: `PlanChoices.max_memory_bytes`.
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds. 0
            if it is known to be dead.
        lease_ttl: How long the restore counts as alive while none of its trials runs; timedelta or
            seconds, at most a day. The next restore watches a dead one for as long, at most 15 minutes.
        storage_conn_id: Airflow connection for all experiments; by default the one in each address.
        ray_conn_id: Connection `ray_jobs` of a cluster. An experiment also counts as running if a live
            job of this cluster names it. (templated)
        launcher: Where the trials will run: `local`, `ray` or `kubernetes`. Only with `local` this task
            checks the trainable; with the others the runner refuses one that does not fit. (templated)
        python: Interpreter for the check; by default the worker's own.
        runner_user: User of the check, as in `RestoreTrialOperator`. (templated)
        env: Environment variables for the check; no secrets.
    """

    template_fields = (
        "experiments",
        *_RESUME_FLAGS,
        "resume_config",
        "trainable",
        "param_space",
        "search_alg",
        "strategy",
        *_SWITCHES,
        "max_attempts",
        "max_memory",
        "stale_after",
        "storage_conn_id",
        "launcher",
        "runner_user",
        "ray_conn_id",
    )
    ui_color = "#fdf3d8"

    def __init__(  # noqa: PLR0913  Ray's flags under Ray's names, and where to find things
        self,
        *,
        experiments: Any,
        resume_unfinished: bool | str = True,
        resume_errored: bool | str = False,
        restart_errored: bool | str = False,
        resume_cut_short: bool | str = False,
        resume_config: Mapping[str, Any] | None = None,
        trainable: str | None = None,
        param_space: str | None = None,
        search_alg: str | None = None,
        imports: Sequence[str] = (),
        strategy: str = AUTO,
        fresh_budget: bool | str = False,
        trim_results: bool | str = False,
        remember_scheduler: bool | str = False,
        allow_scratch: bool | str = False,
        newest_checkpoint: bool | str = False,
        ignore_tuner: bool | str = False,
        max_attempts: int | str | None = None,
        max_memory: float | str = DEFAULT_MAX_MEMORY_BYTES,
        stale_after: timedelta | float | str = DEFAULT_STALE_AFTER,
        lease_ttl: timedelta | float = DEFAULT_LEASE_TTL,
        storage_conn_id: str | None = None,
        launcher: str = "local",
        ray_conn_id: str | None = None,
        python: str | None = None,
        runner_user: str | None = None,
        env: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiments = experiments
        self.resume_unfinished = resume_unfinished
        self.resume_errored = resume_errored
        self.restart_errored = restart_errored
        self.resume_cut_short = resume_cut_short
        self.resume_config = resume_config
        self.trainable = trainable
        self.param_space = param_space
        self.search_alg = search_alg
        self.imports = imports
        self.strategy = strategy
        self.fresh_budget = fresh_budget
        self.trim_results = trim_results
        self.remember_scheduler = remember_scheduler
        self.allow_scratch = allow_scratch
        self.newest_checkpoint = newest_checkpoint
        self.ignore_tuner = ignore_tuner
        self.max_attempts = max_attempts
        self.max_memory = max_memory
        self.stale_after = stale_after
        self.lease_ttl = lease_ttl
        self.storage_conn_id = storage_conn_id
        self.launcher = launcher
        self.ray_conn_id = ray_conn_id
        self.python = python
        self.runner_user = runner_user
        self._has_user = runner_user is not None
        self.env = env

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Prepare all restores, refuse those that cannot run, then start the rest."""
        ti = context["ti"]
        with as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            options = self._options()
            lease.check_ttl(self._ttl_seconds())
            runner_account(self._user(), self.launcher)
            texts = arguments.parse_addresses(self.experiments)
            places = {text: hook.address(text) for text in texts}
        skipped = SkippedExperiments()

        def prepare(text: str) -> PreparedRestore | str:
            store = hook.open(places[text], in_bulk=True)
            try:
                return prepare_restore(store, xcom.restore_id_for(context, store.uri), options)
            except ExperimentRunningError as error:
                return f"it is running: {error.reason}"

        prepared: dict[str, PreparedRestore] = {}
        for text, result in map_experiments(prepare, places, skipped):
            if isinstance(result, PreparedRestore):
                prepared[text] = result
            else:
                skipped.left_alone[text] = result
        prepared = self._without_unfit(hook, places, prepared, skipped)
        prepared = _without_too_many(prepared, skipped)
        to_continue = [t for t, restore in prepared.items() if restore.plan.only_continues_search]
        to_start = {t: restore for t, restore in prepared.items() if t not in to_continue}
        started = self._start(context, places, to_start, options, skipped)
        ti.xcom_push(xcom.UNEXPECTED_KEY, skipped.unexpected)
        ti.xcom_push(xcom.CONTINUE_SEARCH_KEY, [str(places[text]) for text in to_continue])
        for text in to_continue:
            self.log.info("%s: only the search is left to continue", places[text])
        skipped.log(self.log)
        for address, plan in started:
            self._log_plan(address, plan)
        if not started and not to_continue:
            skipped.stop_without_work()
        return [item.to_xcom() for address, plan in started for item in _items(address, plan)]

    def _start(
        self,
        context: Context,
        places: dict[str, Address],
        prepared: dict[str, PreparedRestore],
        options: PrepareOptions,
        skipped: SkippedExperiments,
    ) -> list[tuple[Address, RestorePlan]]:
        ti = context["ti"]
        holder, ttl_seconds = f"DAG {ti.dag_id}, run {ti.run_id}", self._ttl_seconds()
        # pushed before, too: if this task dies half-way, the commit finds the leases that it took
        _push_restores(ti, [(places[text], each.plan) for text, each in prepared.items()])

        def start(text: str) -> tuple[RestorePlan | None, CommitSummary | None]:
            return start_restore(prepared[text], options, holder=holder, ttl_seconds=ttl_seconds)

        started: list[tuple[Address, RestorePlan]] = []
        for text, (plan, settled) in map_experiments(start, prepared, skipped):
            if settled is not None:
                self.log.info("A restore that died was committed first. %s", settled.headline())
            if plan is None:
                skipped.left_alone[text] = "a restore that died had left nothing more to do"
            else:
                started.append((places[text], plan))
        _push_restores(ti, started)
        return started

    def _without_unfit(
        self,
        hook: ExperimentStorageHook,
        places: dict[str, Address],
        prepared: dict[str, PreparedRestore],
        skipped: SkippedExperiments,
    ) -> dict[str, PreparedRestore]:
        """Leave out experiments that the trainable does not fit, if it can be checked here."""
        trainable = parse_text(self.trainable)
        if trainable is None or self.launcher in (LauncherName.RAY, LauncherName.KUBERNETES):
            return prepared
        check = TrainableCheck(
            hook=hook,
            launcher=self.launcher,
            python=self.python,
            runner_user=self._user(),
            env=self.env or {},
            trainable=trainable,
            param_space=parse_text(self.param_space),
            search_alg=parse_text(self.search_alg),
            imports=self.imports,
        )
        skipped.refused.update(check.errors(places, prepared))
        return {text: each for text, each in prepared.items() if text not in skipped.refused}

    def _user(self) -> str | None:
        return arguments.parse_user(self.runner_user, was_given=self._has_user)

    def _ttl_seconds(self) -> float:
        return arguments.parse_span("lease_ttl", self.lease_ttl).total_seconds()

    def _options(self) -> PrepareOptions:
        if self.resume_config:
            flags = ResumeFlags.parse(dict(self.resume_config))
        else:
            flags = ResumeFlags.from_flags(**self._parse_bools(_RESUME_FLAGS))
        choices = PlanChoices(
            flags=flags,
            strategy=self.strategy,
            **self._parse_bools(_SWITCHES),
            max_attempts=arguments.parse_count("max_attempts", self.max_attempts),
            max_memory_bytes=arguments.parse_bytes("max_memory", self.max_memory),
        )
        return PrepareOptions(
            choices=choices,
            stale_after=arguments.parse_span("stale_after", self.stale_after),
            can_start=parse_text(self.param_space) is not None,
            can_search=parse_text(self.search_alg) is not None,
            ask_driver=driver_jobs(parse_text(self.ray_conn_id)),
        )

    def _parse_bools(self, names: Sequence[str]) -> dict[str, bool]:
        return {name: arguments.parse_bool(name, getattr(self, name)) for name in names}

    def _log_plan(self, address: Address, plan: RestorePlan) -> None:
        self.log.info(
            "%s: restore %s, %s to run, from %s",
            *(address, plan.restore_id, share(len(plan.to_run), len(plan.trials), "trial")),
            plan.base.name,
        )
        self.log.info("  strategy %s: %s", plan.strategy, plan.strategy_reason)
        to_run = [f"{t.action} {t.title}: {printable(t.reason)}" for t in plan.to_run]
        _log_lines(self.log.info, to_run)
        _log_lines(self.log.info, describe_kept(plan, in_dag))
        _log_lines(self.log.warning, [f"{t.trial_id}: {t.reason}" for t in plan.quarantined])
        _log_lines(self.log.warning, plan.warnings)


def _log_lines(log: Callable[..., None], lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN_LINES]:
        log("  %s", line)
    if len(lines) > _SHOWN_LINES:
        log("  … and %d more", len(lines) - _SHOWN_LINES)


def _without_too_many(
    prepared: dict[str, PreparedRestore], skipped: SkippedExperiments
) -> dict[str, PreparedRestore]:
    """Leave out, before anything is leased, experiments whose trials Airflow would refuse to map.

    The smallest are taken first, so one experiment with very many trials stops no other. The task
    `continue_search` is mapped over the experiments, so their number is limited, too.
    """
    limit = conf.getint("core", "max_map_length", fallback=1024)
    trials, experiments = 0, 0
    for text, restore in sorted(prepared.items(), key=lambda item: _size(item[1].plan)):
        _, count = _size(restore.plan)
        if trials + count <= limit and experiments < limit:
            trials, experiments = trials + count, experiments + 1
            continue
        skipped.refused[text] = InvalidInputError(
            f"It has {count} trials to run, beside {trials} trials of {experiments} other "
            f"experiments, but Airflow maps at most {limit} tasks: [core] max_map_length "
            "(AIRFLOW__CORE__MAX_MAP_LENGTH). Raise it on API server, scheduler and workers, or restore "
            "fewer experiments at a time. It was not leased."
        )
    return {text: each for text, each in prepared.items() if text not in skipped.refused}


def _size(plan: RestorePlan) -> tuple[bool, int]:
    """Return the sort key of a plan: those that only continue the search are last and map no trial."""
    count = 0 if plan.only_continues_search else len(plan.to_run) + plan.continues_search
    return plan.only_continues_search, count


def _items(address: Address, plan: RestorePlan) -> list[xcom.TrialXCom]:
    """Return one item per trial, and one for the samples that the same run adds."""
    trials = (*plan.to_run, None) if plan.continues_search else plan.to_run
    return [xcom.TrialXCom.build(address, plan, trial) for trial in trials]


def _push_restores(ti: Any, restores: Iterable[tuple[Address, RestorePlan]]) -> None:
    items = [
        xcom.RestoreXCom(experiment=str(address), restore_id=plan.restore_id)
        for address, plan in restores
    ]
    ti.xcom_push(xcom.RESTORES_KEY, [item.to_xcom() for item in items])
