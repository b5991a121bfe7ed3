"""The base of the operators that prepare restores: the plan, and the preview that comes before a yes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from airflow.sdk import Context

from airflow_tune_restore import arguments
from airflow_tune_restore.arguments import RESUME_FLAGS, SKIP_UNKNOWN, SWITCHES, parse_text
from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError, UnknownTrialError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.hooks.dag_runs import ask_dag_run, trigger_command
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.hooks.ray_jobs import driver_jobs
from airflow_tune_restore.hooks.window import Window
from airflow_tune_restore.hooks.xcom_size import unpack
from airflow_tune_restore.launch.account import runner_account
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.operators import xcom
from airflow_tune_restore.operators.dag_run_room import take_what_fits
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.recipe_operator import RecipeOperator
from airflow_tune_restore.operators.trainable_check import CHECK_FIELDS, TrainableCheck
from airflow_tune_restore.protocol.check import DEFAULT_CHECK_TIMEOUT
from airflow_tune_restore.restore.choices import AUTO, DEFAULT_MAX_MEMORY_BYTES, PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.only import Only
from airflow_tune_restore.restore.own_restore import find_started
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions

DEFAULT_LEASE_TTL = timedelta(minutes=15)
"""Longer than a retry delay or a full queue: nothing renews a lease while all its tasks wait."""


class Task(NamedTuple):
    """The parsed arguments of one task, and its experiments."""

    hook: ExperimentStorageHook
    batch: ExperimentBatch
    options: PrepareOptions
    max_trials: int | None
    window: Window


class PrepareRestoresOperator(RecipeOperator):
    """Prepares the restores of experiments: reads and plans each, and refuses what cannot run.

    It takes no lease and writes nothing.

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
        trainable, recipes, prefix, param_space, imports, python, env: As in
            `airflow_tune_restore.operators.recipe_operator.RecipeOperator`. A trainable is checked before
            anything is leased; without any, that is left to the runners.
        on_unknown: For an experiment that no trainable is given for: `skip` lists it, `fail` refuses it.
            (templated)
        search_alg: `package.module:attribute` of a searcher, for samples whose own searcher is lost with
            `tuner.pkl`. Without it, an experiment with only such samples left is refused.
        check_timeout: How long the check may take for all experiments of one recipe, which are checked
            together; timedelta or seconds. (templated)
        trials: Ids of the only trials to restore: a list, or text with commas. None: all. The other
            trials stay as they are recorded, and the search is not continued. A template that renders to
            nothing is refused. (templated)
        only: Which of the trials that the flags choose are restored; otherwise as `trials`. A mapping, or
            texts `KEY=VALUE`, as in `airflow_tune_restore.restore.only.Only`. None: all. (templated)
        strategy, fresh_budget, trim_results, remember_scheduler, allow_scratch, newest_checkpoint,
            ignore_tuner, trust_name, max_attempts: As in
            `airflow_tune_restore.restore.choices.PlanChoices`.
        max_memory: `PlanChoices.max_memory_bytes`.
        until: A time of day in the time zone of the DAG, as `07:00`: the end of the window. From then on
            nothing is started, and what runs is paused. It is the next such moment after the DAG run was
            to run; in a row of DAG runs that `repeat` starts, after the first one was. (templated)
        max_duration: How long after that the window ends, if not before; timedelta or seconds.
            (templated)
        max_trials: Most trials of this DAG run, if fewer than `[core] max_map_length`. The longest dead
            experiments come first, whole ones before a part of one. The others wait. (templated)
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds. 0
            if it is known to be dead.
        lease_ttl: How long the restore counts as alive while none of its trials runs; timedelta or
            seconds, from one minute to a day. The next restore watches a dead one for as long, at most
            15 minutes; for half a minute if Airflow knows that its DAG run has ended.
        storage_conn_id: Airflow connection for all experiments; by default the one in each address.
        ray_conn_id: Connection `ray_jobs` of a cluster. An experiment also counts as running if a live
            job of this cluster names it. (templated)
        launcher: Where the trials will run: `local`, `ray` or `kubernetes`. Only with `local` this task
            checks the trainable; with the others the runner refuses one that does not fit. (templated)
        runner_user: User of the check, as in `RestoreTrialOperator`. (templated)
    """

    template_fields = (
        "experiments",
        *RESUME_FLAGS,
        "resume_config",
        *RecipeOperator.template_fields,
        "on_unknown",
        "strategy",
        "trials",
        "only",
        *SWITCHES,
        "max_attempts",
        "max_memory",
        "max_trials",
        "until",
        "max_duration",
        "stale_after",
        "check_timeout",
        "storage_conn_id",
        "launcher",
        "runner_user",
        "ray_conn_id",
    )
    ui_color = "#fdf3d8"
    needs_trainable = False

    def __init__(  # noqa: PLR0913  Ray's flags under Ray's names, and where to find things
        self,
        *,
        experiments: Any,
        resume_unfinished: bool | str = True,
        resume_errored: bool | str = False,
        restart_errored: bool | str = False,
        resume_cut_short: bool | str = False,
        resume_config: Mapping[str, Any] | None = None,
        on_unknown: str = SKIP_UNKNOWN,
        strategy: str = AUTO,
        fresh_budget: bool | str = False,
        trim_results: bool | str = False,
        remember_scheduler: bool | str = False,
        allow_scratch: bool | str = False,
        newest_checkpoint: bool | str = False,
        ignore_tuner: bool | str = False,
        trust_name: bool | str = False,
        trials: Sequence[str] | str | None = None,
        only: Mapping[str, Any] | Sequence[str] | str | None = None,
        max_attempts: int | str | None = None,
        max_memory: float | str = DEFAULT_MAX_MEMORY_BYTES,
        max_trials: int | str | None = None,
        until: str | None = None,
        max_duration: timedelta | float | str | None = None,
        stale_after: timedelta | float | str = DEFAULT_STALE_AFTER,
        lease_ttl: timedelta | float = DEFAULT_LEASE_TTL,
        check_timeout: timedelta | float | str = DEFAULT_CHECK_TIMEOUT,
        storage_conn_id: str | None = None,
        launcher: str = "local",
        ray_conn_id: str | None = None,
        runner_user: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiments = experiments
        self.resume_unfinished = resume_unfinished
        self.resume_errored = resume_errored
        self.restart_errored = restart_errored
        self.resume_cut_short = resume_cut_short
        self.resume_config = resume_config
        self.on_unknown = on_unknown
        self.strategy = strategy
        self.fresh_budget = fresh_budget
        self.trim_results = trim_results
        self.remember_scheduler = remember_scheduler
        self.allow_scratch = allow_scratch
        self.newest_checkpoint = newest_checkpoint
        self.ignore_tuner = ignore_tuner
        self.trust_name = trust_name
        self.trials = trials
        self._has_trials = trials is not None
        self.only = only
        self._has_only = only is not None
        self.max_attempts = max_attempts
        self.max_memory = max_memory
        self.max_trials = max_trials
        self.until = until
        self.max_duration = max_duration
        self.stale_after = stale_after
        self.lease_ttl = lease_ttl
        self.check_timeout = check_timeout
        self.storage_conn_id = storage_conn_id
        self.launcher = launcher
        self.ray_conn_id = ray_conn_id
        self.runner_user = runner_user
        self._has_user = runner_user is not None
        self.check_literals(vars(self))

    def parse(self, context: Context) -> Task:
        """Parse the arguments (InvalidInputError if one is not valid)."""
        experiments = unpack(self.experiments)
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        window = Window.of(context, self.until, self.max_duration)
        if window.end is not None:
            self.log.info(
                "The window of this DAG run ends at %s. From then on nothing is started, and what "
                "runs is paused.",
                window,
            )
        options = replace(self._options(), pause_at=window.end)
        max_trials = arguments.parse_count("max_trials", self.max_trials)
        runner_account(self._user(), self.launcher)
        fails_on_unknown = arguments.parse_on_unknown("on_unknown", self.on_unknown)
        batch = ExperimentBatch(
            map(hook.address, arguments.parse_addresses(experiments)),
            shares_prefix=arguments.shares_prefix(experiments),
            fails_on_unknown=fails_on_unknown,
            find_started=partial(_find_started, context, hook),
        )
        return Task(hook, batch, options, max_trials, window)

    def prepare(
        self, context: Context, task: Task
    ) -> tuple[dict[str, PreparedRestore], frozenset[str]]:
        """Return the restores to start, by address, and which of them go by a name alone.

        The batch has what becomes of all other experiments.
        """
        hook, batch = task.hook, task.batch
        prepared = self._prepare_all(context, hook, batch, task.options)
        for text, restore in prepared.items():
            wait_if_over(batch, text, restore, task.window, context)
        prepared = batch.undecided(prepared)
        has_evidence = self._refuse_misfits(hook, batch, prepared)
        prepared = take_what_fits(batch, batch.undecided(prepared), task.max_trials)
        if not batch.spans_directories:
            return prepared, frozenset()
        # those that an earlier try has started were checked by it
        named = {
            text
            for text, each in prepared.items()
            if each.options.go_by_name and not each.is_started
        }
        return prepared, frozenset(named - has_evidence)

    def record(
        self, batch: ExperimentBatch, prepared: dict[str, PreparedRestore], by_name: frozenset[str]
    ) -> dict[str, PreparedRestore]:
        """Record in the batch what becomes of prepared restores, and return those that run trials."""
        to_start: dict[str, PreparedRestore] = {}
        for text, restore in prepared.items():
            if restore.plan.only_continues_search and not restore.nothing_to_do:
                batch.continue_search(text, by_name=text in by_name)
            else:
                to_start[text] = restore
                batch.take(text, restore.plan.restore_id, by_name=text in by_name)
                batch.describe_part(text, restore.plan)
        return to_start

    def _prepare_all(
        self,
        context: Context,
        hook: ExperimentStorageHook,
        batch: ExperimentBatch,
        options: PrepareOptions,
    ) -> dict[str, PreparedRestore]:
        def prepare(text: str) -> PreparedRestore | UnknownTrialError | str:
            store = hook.open(batch.places[text])
            try:
                return prepare_restore(store, xcom.restore_id_for(context, store.uri), options)
            except UnknownTrialError as error:
                return error

        results = batch.map(prepare, batch.undecided(batch.places))
        is_known = any(not isinstance(result, UnknownTrialError) for _, result in results)
        prepared: dict[str, PreparedRestore] = {}
        for text, result in results:
            match result:
                case PreparedRestore():
                    prepared[text] = result
                case UnknownTrialError() if not is_known:
                    batch.refuse(text, result)
                case _:  # another experiment has these trials, or nothing is to do
                    batch.leave_alone(text, str(result))
        return batch.without_twins(prepared)

    def _refuse_misfits(
        self,
        hook: ExperimentStorageHook,
        batch: ExperimentBatch,
        prepared: dict[str, PreparedRestore],
    ) -> frozenset[str]:
        """Refuse experiments that the trainable does not fit, if it can be checked here.

        Return those for which there is more evidence than the name of the trainable.
        """
        if not self._has_trainable() or self.launcher in (
            LauncherName.RAY,
            LauncherName.KUBERNETES,
        ):
            return frozenset()
        check = TrainableCheck(
            hook=hook,
            launcher=self.launcher,
            runner_user=self._user(),
            own={name: getattr(self, name) for name in CHECK_FIELDS},
            is_for_all=self.parse_recipes().is_for_all,
            timeout=arguments.parse_limit("check_timeout", self.check_timeout),
        )
        try:
            checked = check.run(batch.places, prepared)
        except InvalidInputError as error:  # the trainable itself cannot be used
            for text, restore in prepared.items():
                if restore.is_started:  # by an earlier try
                    batch.take(text, restore.plan.restore_id)
                else:
                    batch.refuse(text, error)
            raise
        for text, warning in checked.warnings.items():
            self.log.warning("%s: %s", text, warning)
        for text, refusal in checked.errors.items():
            batch.refuse(text, refusal)
        return frozenset(checked.by_module)

    def _user(self) -> str | None:
        return arguments.parse_user(self.runner_user, was_given=self._has_user)

    def _options(self) -> PrepareOptions:
        if self.resume_config:
            flags = ResumeFlags.parse(dict(self.resume_config))
        else:
            flags = ResumeFlags.from_flags(**self._parse_bools(RESUME_FLAGS))
        choices = PlanChoices(
            flags=flags,
            strategy=self.strategy,
            **self._parse_bools(SWITCHES),
            trials=arguments.parse_ids("trials", self.trials) if self._has_trials else (),
            max_attempts=arguments.parse_count("max_attempts", self.max_attempts),
            max_memory_bytes=arguments.parse_bytes("max_memory", self.max_memory),
        )
        return PrepareOptions(
            choices=choices,
            only=arguments.parse_only("only", self.only) if self._has_only else Only(),
            prefix=self.parse_prefix(),
            stale_after=arguments.parse_span("stale_after", self.stale_after),
            can_start=parse_text(self.param_space) is not None,
            can_search=parse_text(self.search_alg) is not None,
            in_pods=self.launcher == LauncherName.KUBERNETES,
            ask_driver=driver_jobs(parse_text(self.ray_conn_id)),
            ask_holder=ask_dag_run,
            recipes=self.parse_recipes() if self._has_trainable() else None,
        )

    def _has_trainable(self) -> bool:
        return parse_text(self.trainable) is not None or bool(self.recipes)

    def _parse_bools(self, names: Sequence[str]) -> dict[str, bool]:
        return {name: arguments.parse_bool(name, getattr(self, name)) for name in names}


def wait_if_over(
    batch: ExperimentBatch,
    text: str,
    restore: PreparedRestore,
    window: Window,
    context: Context,
) -> bool:
    """Let a restore wait for a later DAG run if the window has ended; return whether it has.

    One that an earlier try has started goes on to its commit.
    """
    if restore.is_started or not window.is_over:
        return False
    start = trigger_command(context["dag_run"])
    batch.wait(
        text,
        f"waits for the next DAG run: the window of this one ended at {window}. The next scheduled DAG "
        f"run takes it; to start one now: {start}",
        trials=len(restore.plan.left_to_run),
    )
    return True


def _find_started(context: Context, hook: ExperimentStorageHook, address: Address) -> str | None:
    """Return the id of the restore that an earlier try started, if it may hold the lease."""
    if context["ti"].try_number == 1:
        return None
    try:
        store = hook.open(address)
    except TuneRestoreError:
        return None
    base_id = xcom.restore_id_for(context, store.uri)
    try:
        return find_started(store, base_id)
    except Exception:  # noqa: BLE001  it may hold the lease: the commit will find out
        return base_id
