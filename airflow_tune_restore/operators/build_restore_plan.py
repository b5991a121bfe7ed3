"""Decides what is to be resumed, over all experiments, and takes their leases."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.configuration import conf

from airflow_tune_restore.arguments import (
    parse_addresses,
    parse_bool,
    parse_bytes,
    parse_count,
    parse_span,
    parse_text,
    parse_user,
)
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.experiments.unexpected import report_unexpected
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.driver_jobs import driver_jobs
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.launch.account import runner_account
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.launch.local import build_launcher
from airflow_tune_restore.operators.experiment_batch import SkippedExperiments, map_experiments
from airflow_tune_restore.operators.xcom import (
    CONTINUE_SEARCH_KEY,
    RESTORES_KEY,
    UNEXPECTED_KEY,
    RestoreXCom,
    TrialXCom,
    restore_id_for,
)
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.restore.choices import DEFAULT_MAX_MEMORY_BYTES, PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import PreparedRestore, PrepareOptions, prepare_restore
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.summary import CommitSummary

DEFAULT_LEASE_TTL = timedelta(minutes=15)
"""Longer than a retry delay or a full queue: nothing renews a lease while all its tasks wait."""

_SHOWN_TRIALS = 50


class BuildRestorePlanOperator(BaseOperator):
    """Plans restores, takes their leases, and returns one small item for each trial to run.

    The items of all experiments come in one flat list, for
    `RestoreTrialOperator.partial(…).expand(trial=plan.output)`; the restores themselves go to
    `CommitRestoreOperator(restores=plan.output["restores"])`. An experiment that is running is never
    touched. One that is leased, unreadable or unfit is reported, and the others go on. So it is with an
    error that nobody foresaw: `plan.output["unexpected"]` names the experiment for a
    `CheckRestoresOperator` at the end. A retry re-enters its own restores. With nothing to restore the
    task is skipped and says why.

    Args:
        experiments: What the sensor returned, a list of addresses, or one address, as
            `s3://conn_id@bucket/path` or a local path. (templated)
        resume_unfinished: Resume PENDING, RUNNING and PAUSED trials; else they become TERMINATED.
        resume_errored: Resume ERROR trials from their latest checkpoint.
        restart_errored: Start ERROR trials over, under new ids. Resume wins over restart.
        resume_cut_short: Resume trials that `fail_fast` marked TERMINATED when another one failed.
        resume_config: `{"finished": …, "unfinished": …, "errored": …}` with `skip`, `resume` or
            `restart`, in place of the flags; `cut_short` is a fourth key.
        trainable: `package.module:attribute` or a name registered with Tune. If given, it is checked
            before anything is leased.
        param_space: `package.module:attribute` of a re-specified param_space.
        search_alg: `package.module:attribute` of a searcher for samples whose own is lost with
            `tuner.pkl`. Without it, an experiment of which only such samples are left is refused.
        imports: Modules that the check imports first.
        strategy: `auto`, or `per_trial` to run coupled trials one by one all the same.
        fresh_budget: Give resumed trials their failure budget back (Ray keeps it spent).
        trim_results: Drop result rows past the checkpoint before resuming (Ray repeats them).
        remember_scheduler: Let ASHA and MedianStopping judge resumed trials against all there were.
            Ray forgets: after a restore its rungs and averages are empty, and a hopeless trial may
            train to its end. Needs one run of all trials.
        allow_scratch: Let a trial whose checkpoints are all gone start over.
        newest_checkpoint: Resume from a complete checkpoint that was reported after the state was saved,
            rather than from the one that the state names, as Ray does.
        ignore_tuner: Restore from the state alone, whatever `tuner.pkl` holds: it belongs to another run
            under the same name, or needs a module that is gone. Callbacks, stopper, scheduler, searcher,
            failure and checkpoint settings are lost.
        max_attempts: Failed attempts, counted over all nights, after which a trial is quarantined; None
            for no limit. The same exception at the same place and iteration twice quarantines it anyway.
        max_memory: Bytes of memory that a trial is given at most after it ran out of it. It is given
            twice as much each time, where it runs on a cluster (`ray_address`).
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds.
            0 for ones known to be dead.
        lease_ttl: How long the restore counts as alive while none of its trials runs; timedelta or
            seconds, at most a day. The next one watches a dead one for as long, at most 15 minutes.
        storage_conn_id: Airflow connection for all experiments; by default the one in each address.
        ray_conn_id: Connection `ray_jobs` of a cluster: as for the sensor, what looks dead is left alone
            if a live job there names it. (templated)
        launcher: Where the trials will run: `local` or `ray`. The trainable is checked beforehand only
            where they run here; elsewhere the runner refuses one that does not fit. (templated)
        python: Interpreter for the check; by default the worker's own.
        runner_user: Whom the check runs as, as in `RestoreTrialOperator`. (templated)
        env: Environment variables for the check; no secrets.
    """

    template_fields = (
        "experiments",
        "resume_unfinished",
        "resume_errored",
        "restart_errored",
        "resume_cut_short",
        "resume_config",
        "trainable",
        "param_space",
        "search_alg",
        "strategy",
        "fresh_budget",
        "trim_results",
        "remember_scheduler",
        "allow_scratch",
        "newest_checkpoint",
        "ignore_tuner",
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
        strategy: str = "auto",
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
        """PreparedRestore all, refuse what cannot run, then start what is left."""
        ti = context["ti"]
        with as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            options = self._options()
            lease.check_ttl(self._ttl_seconds())
            runner_account(parse_user(self.runner_user, was_given=self._has_user), self.launcher)
            places = {text: hook.address(text) for text in parse_addresses(self.experiments)}
        verdicts = SkippedExperiments()

        def draft(text: str) -> PreparedRestore | str:
            store = hook.open(places[text], in_bulk=True)
            base_id = restore_id_for(
                ti.dag_id,
                ti.run_id,
                ti.task_id,
                ti.map_index if ti.map_index is not None else -1,
                store.uri,
            )
            try:
                return prepare_restore(store, base_id, options)
            except ExperimentRunningError as error:
                return f"it is running: {error.reason}"

        drafts: dict[str, PreparedRestore] = {}
        for text, result in map_experiments(draft, places, verdicts):
            if isinstance(result, PreparedRestore):
                drafts[text] = result
            else:
                verdicts.left_alone[text] = result
        drafts = self._without_unfit(hook, places, drafts, verdicts)
        drafts = _without_too_many(drafts, verdicts)
        continued = [
            places[text] for text, draft in drafts.items() if draft.plan.only_continues_search
        ]
        drafts = {text: d for text, d in drafts.items() if not d.plan.only_continues_search}
        started = self._start(context, places, drafts, options, verdicts)
        ti.xcom_push(UNEXPECTED_KEY, verdicts.unexpected)
        ti.xcom_push(CONTINUE_SEARCH_KEY, [str(address) for address in continued])
        for address in continued:
            self.log.info("%s: only samples are left to draw", address)
        self._report(started, verdicts)
        if not started and not continued:
            verdicts.stop_without_work()
        return [item.to_xcom() for address, plan in started for item in _items(address, plan)]

    def _start(
        self,
        context: Context,
        places: dict[str, Address],
        drafts: dict[str, PreparedRestore],
        options: PrepareOptions,
        verdicts: SkippedExperiments,
    ) -> list[tuple[Address, RestorePlan]]:
        ti = context["ti"]
        # pushed before, too: should this task die half-way, the commit finds the leases it took
        ti.xcom_push(
            RESTORES_KEY, [_restore(places[text], draft.plan) for text, draft in drafts.items()]
        )
        holder = f"DAG {ti.dag_id}, run {ti.run_id}"
        ttl_seconds = self._ttl_seconds()

        def start(text: str) -> tuple[RestorePlan | None, CommitSummary | None]:
            return start_restore(drafts[text], options, holder=holder, ttl_seconds=ttl_seconds)

        started: list[tuple[Address, RestorePlan]] = []
        for text, (plan, settled) in map_experiments(start, drafts, verdicts):
            if settled is not None:
                self.log.info("A restore that died was committed first. %s", settled.headline())
            if plan is None:
                verdicts.left_alone[text] = "a restore that died had left nothing more to do"
            else:
                started.append((places[text], plan))
        ti.xcom_push(RESTORES_KEY, [_restore(address, plan) for address, plan in started])
        return started

    def _without_unfit(
        self,
        hook: ExperimentStorageHook,
        places: dict[str, Address],
        drafts: dict[str, PreparedRestore],
        verdicts: SkippedExperiments,
    ) -> dict[str, PreparedRestore]:
        """Leave out experiments that the trainable does not fit, if we know the trainable."""
        trainable, param_space = parse_text(self.trainable), parse_text(self.param_space)
        if trainable is None or self.launcher in (LauncherName.RAY, LauncherName.KUBERNETES):
            return drafts
        answers: dict[tuple[str, str], InvalidInputError | None] = {}
        fit: dict[str, PreparedRestore] = {}
        for text, draft in drafts.items():
            search_alg = parse_text(self.search_alg) if draft.experiment.searcher_lost else None
            # the answer depends on the recorded name alone, but for a param_space, a searcher, a
            # tuner.pkl that is not the experiment's, and a user who may not write everywhere
            is_its_own = param_space or search_alg or draft.plan.ignore_tuner or self.runner_user
            question = (draft.plan.trainable_name, draft.plan.experiment if is_its_own else "")
            error: TuneRestoreError | None = answers.get(question)
            if draft.plan.has_work and not draft.is_started and question not in answers:
                error = self._check(
                    hook, places[text], draft.plan, trainable, param_space, search_alg
                )
                if error is None or isinstance(error, InvalidInputError):
                    answers[question] = error  # of others the next experiment may know better
            if error is None:
                fit[text] = draft
            else:
                verdicts.refused[text] = error
        return fit

    def _check(
        self,
        hook: ExperimentStorageHook,
        address: Address,
        plan: RestorePlan,
        trainable: str,
        param_space: str | None,
        search_alg: str | None,
    ) -> TuneRestoreError | None:
        """Return why the trainable does not fit, or cannot be checked with this experiment."""
        try:
            with hook.runner_env(address) as credentials:
                launcher = build_launcher(
                    self.launcher,
                    python=self.python,
                    env={**credentials, **(self.env or {})},
                    runner_user=parse_user(self.runner_user, was_given=self._has_user),
                )
                launcher.check(
                    experiment=plan.experiment,
                    trainable=trainable,
                    trainable_name=plan.trainable_name,
                    param_space=param_space,
                    search_alg=search_alg,
                    imports=self.imports,
                    ignore_tuner=plan.ignore_tuner,
                )
        except TuneRestoreError as error:
            return error
        except Exception as error:  # noqa: BLE001  reported, and it must not stop the others
            return report_unexpected(str(address), error)
        return None

    def _ttl_seconds(self) -> float:
        return parse_span("lease_ttl", self.lease_ttl).total_seconds()

    def _options(self) -> PrepareOptions:
        if self.resume_config:
            flags = ResumeFlags.parse(dict(self.resume_config))
        else:
            flags = ResumeFlags.from_flags(
                resume_unfinished=parse_bool("resume_unfinished", self.resume_unfinished),
                resume_errored=parse_bool("resume_errored", self.resume_errored),
                restart_errored=parse_bool("restart_errored", self.restart_errored),
                resume_cut_short=parse_bool("resume_cut_short", self.resume_cut_short),
            )
        choices = PlanChoices(
            flags=flags,
            strategy=self.strategy,
            fresh_budget=parse_bool("fresh_budget", self.fresh_budget),
            trim_results=parse_bool("trim_results", self.trim_results),
            remember_scheduler=parse_bool("remember_scheduler", self.remember_scheduler),
            allow_scratch=parse_bool("allow_scratch", self.allow_scratch),
            newest_checkpoint=parse_bool("newest_checkpoint", self.newest_checkpoint),
            ignore_tuner=parse_bool("ignore_tuner", self.ignore_tuner),
            max_attempts=parse_count("max_attempts", self.max_attempts),
            max_memory_bytes=parse_bytes("max_memory", self.max_memory),
        )
        return PrepareOptions(
            choices=choices,
            stale_after=parse_span("stale_after", self.stale_after),
            can_start=parse_text(self.param_space) is not None,
            can_search=parse_text(self.search_alg) is not None,
            ask_driver=driver_jobs(parse_text(self.ray_conn_id)),
        )

    def _report(
        self, started: list[tuple[Address, RestorePlan]], verdicts: SkippedExperiments
    ) -> None:
        for text, reason in verdicts.left_alone.items():
            self.log.info("%s is left alone: %s", text, printable(reason, NOTE_LENGTH))
        for text, error in verdicts.refused.items():
            self.log.warning("%s is not restored: %s", text, printable(str(error), NOTE_LENGTH))
        for address, plan in started:
            self.log.info(
                "%s: restore %s, %d of %d trials to run, from %s",
                *(address, plan.restore_id, len(plan.to_run), len(plan.trials), plan.base.name),
            )
            self.log.info("  strategy %s: %s", plan.strategy, plan.strategy_reason)
            for trial in plan.to_run[:_SHOWN_TRIALS]:
                self.log.info("  %s %s: %s", trial.action, trial.trial_id, printable(trial.reason))
            if len(plan.to_run) > _SHOWN_TRIALS:
                self.log.info("  … and %d more", len(plan.to_run) - _SHOWN_TRIALS)
            for trial in plan.quarantined[:_SHOWN_TRIALS]:
                self.log.warning("  %s: %s", trial.trial_id, printable(trial.reason, NOTE_LENGTH))
            for warning in plan.warnings[:_SHOWN_TRIALS]:
                self.log.warning("  %s", printable(warning, NOTE_LENGTH))
            if len(plan.warnings) > _SHOWN_TRIALS:
                self.log.warning("  … and %d more", len(plan.warnings) - _SHOWN_TRIALS)


def _without_too_many(
    drafts: dict[str, PreparedRestore], verdicts: SkippedExperiments
) -> dict[str, PreparedRestore]:
    """Leave out, before anything is leased, those whose trials Airflow would refuse to map.

    The smallest are taken first: one experiment with very many trials stops no other. `samples` is
    mapped over the experiments themselves, continued ones included.
    """
    limit = conf.getint("core", "max_map_length", fallback=1024)
    left, places = limit, limit
    for text, draft in sorted(drafts.items(), key=lambda item: _size(item[1].plan)):
        _, count = _size(draft.plan)
        if count <= left and places:
            left, places = left - count, places - 1
            continue
        verdicts.refused[text] = InvalidInputError(
            f"{count} trials of it are to be run beside {limit - left} of {limit - places} other "
            "experiments, but Airflow "
            f"maps at most {limit} tasks: [core] max_map_length (AIRFLOW__CORE__MAX_MAP_LENGTH). Raise "
            "it on API server, scheduler and workers, or restore fewer experiments at a time. It was not "
            "leased."
        )
    return {text: draft for text, draft in drafts.items() if text not in verdicts.refused}


def _size(plan: RestorePlan) -> tuple[bool, int]:
    """Return what it takes its turn by: what only draws samples comes last, and has no trial to run."""
    count = 0 if plan.only_continues_search else len(plan.to_run) + plan.continues_search
    return plan.only_continues_search, count


def _items(address: Address, plan: RestorePlan) -> list[TrialXCom]:
    """Return one item a trial; samples that the same run draws are followed by one of their own."""
    items = [TrialXCom.build(address, plan, trial) for trial in plan.to_run]
    return (
        [*items, TrialXCom.build_continued_search(address, plan)]
        if plan.continues_search
        else items
    )


def _restore(address: Address, plan: RestorePlan) -> dict[str, Any]:
    return RestoreXCom(experiment=str(address), restore_id=plan.restore_id).to_xcom()
