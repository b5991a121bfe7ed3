"""Draws the samples of an experiment that were never drawn, as one task."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_tune_restore.arguments import parse_text, parse_user
from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.launch.local import build_launcher
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.operators.map_index_label import EXPERIMENT_LABEL
from airflow_tune_restore.operators.ray.attempt_job import RayAttemptJob
from airflow_tune_restore.operators.ray.base import RAY, RayJobOperator
from airflow_tune_restore.operators.restore_trial import STOP_GRACE_SECONDS
from airflow_tune_restore.operators.search_continuation import (
    committed_at_last,
    continued_search_options,
    describe_continued,
    parse_continued,
    refuse_unfinished,
    start_continued_search,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import Result, RunnerOutcome
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import PreparedRestore, PrepareOptions
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.launch.local import LocalLauncher
    from airflow_tune_restore.launch.process import RunnerProcess


class ContinueSearchOperator(RayJobOperator):
    """Draws what is left of an experiment's samples with its original searcher, and commits them.

    One real `Tuner.restore(…).fit()` in which every trial that there is stays as it is. A searcher that
    learns (Optuna, HyperOpt) is first told the results of the trials that were restored without it. An
    experiment whose driver died before its first snapshot is started in its place, if a param_space is
    given. With nothing left to draw the task is skipped. Killing it saves a snapshot; a retry goes on
    from there, so give it `retries` of 1 or more. A run that breaks off fails the task, and what it has
    drawn is committed after the last try. Trials that fail are committed with what they have done, and do
    not fail the task. Samples whose searcher is lost, and that no `search_alg` draws, fail it before
    anything is started.

    Returns what `CommitRestoreOperator` returns for one experiment.

    Args:
        experiment: Address of the experiment, or one element of `CommitRestoreOperator`'s output.
            (templated)
        trainable: `package.module:attribute`, or a name registered with Tune. (templated)
        param_space: `package.module:attribute` of the param_space. Needed only for an experiment that
            never started. (templated)
        search_alg: `package.module:attribute` of a searcher, a function without arguments that makes one,
            a Tuner or a TuneConfig. Needed, and used, only where `tuner.pkl` is lost and samples are
            left that Ray's default searcher cannot draw. (templated)
        imports: Modules the runner imports first.
        stale_after: Silence after which an unfinished experiment counts as dead; timedelta or seconds.
        ignore_tuner: As in `BuildRestorePlanOperator`. (templated)
        launcher: Where it runs: `local`, or `ray` as in `RestoreTrialOperator`. (templated)
        python: Interpreter that has Ray and the trainable; the worker's own by default. (templated)
        runner_user: As in `RestoreTrialOperator`. (templated)
        ray_address: Ray cluster to run on; without, a private Ray on all CPUs of the worker. (templated)
        env: Environment variables of the runner. No secrets.
        storage_conn_id: Airflow connection to open the experiment with; by default the one in its
            address. (templated)
        kwargs: With `launcher="ray"`: the arguments of `RayJobOperator`; and those of every operator.
    """

    map_index_label = EXPERIMENT_LABEL
    template_fields = (
        "experiment",
        "trainable",
        "param_space",
        "ignore_tuner",
        "search_alg",
        "launcher",
        "ray_conn_id",
        "python",
        "runner_user",
        "ray_address",
        "storage_conn_id",
    )
    template_fields_renderers = {"experiment": "json"}  # noqa: RUF012  as Airflow declares it
    ui_color = "#e2f2e4"

    def __init__(  # noqa: PLR0913  what to run, where, and with what
        self,
        *,
        experiment: Any,
        trainable: str,
        param_space: str | None = None,
        search_alg: str | None = None,
        imports: Sequence[str] = (),
        stale_after: timedelta | float | str = 0,
        ignore_tuner: bool | str = False,
        launcher: str = "local",
        python: str | None = None,
        runner_user: str | None = None,
        ray_address: str | None = None,
        env: Mapping[str, str] | None = None,
        storage_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiment = experiment
        self.trainable = trainable
        self.param_space = param_space
        self.search_alg = search_alg
        self.imports = imports
        self.stale_after = stale_after
        self.ignore_tuner = ignore_tuner
        self.launcher = launcher
        self.python = python
        self.runner_user = runner_user
        self._has_user = runner_user is not None
        self.ray_address = ray_address
        self.env = env
        self.storage_conn_id = storage_conn_id
        self._process: RunnerProcess | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, run, commit."""
        with committed_at_last(context, self._open, self.log), as_airflow_errors():
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            address = hook.address(parse_continued(self.experiment))
            store = hook.open(address)
            if self.launcher == RAY:
                self._refuse_user()
                plan, settled = start_continued_search(context, store, self._options())
                if plan is None:
                    return describe_continued(address, settled, log=self.log)
                return self._execute_ray_job(context, self._ray_run(plan.restore_id))
            with hook.runner_env(address) as credentials:
                launcher = build_launcher(
                    self.launcher,
                    python=parse_text(self.python),
                    env={**credentials, **(self.env or {})},
                    runner_user=parse_user(self.runner_user, was_given=self._has_user),
                )

                def check(draft: PreparedRestore) -> None:
                    is_lost = draft.experiment.searcher_lost
                    launcher.check(
                        experiment=draft.plan.experiment,
                        trainable=str(self.trainable),
                        trainable_name=draft.plan.trainable_name,
                        param_space=parse_text(self.param_space),
                        search_alg=parse_text(self.search_alg) if is_lost else None,
                        imports=self.imports,
                        ignore_tuner=draft.plan.ignore_tuner,
                    )

                plan, settled = start_continued_search(context, store, self._options(), check)
                if plan is None:
                    return describe_continued(address, settled, log=self.log)
                outcome = self._run(store, plan, launcher)
            refuse_unfinished(plan, outcome)
            return describe_continued(address, commit_restore(store, plan.restore_id), log=self.log)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Go on when the trigger has fired."""
        with committed_at_last(context, self._open, self.log):
            return super().execute_complete(context, event)

    def on_kill(self) -> None:
        """Let the runner save a snapshot and end; asked twice, it waits once."""
        super().on_kill()
        process, self._process = self._process, None
        if process is not None:
            self.log.info("Stopping the run; it saves a snapshot first.")
            process.stop(STOP_GRACE_SECONDS)

    def _options(self) -> PrepareOptions:
        return continued_search_options(
            self.stale_after, self.param_space, self.search_alg, self.ignore_tuner
        )

    def _open(self) -> ObjectStore:
        hook, address, _ = self._target()
        return hook.open(address)

    def _target(self) -> tuple[ExperimentStorageHook, Address, str]:
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        return hook, hook.address(parse_continued(self.experiment)), layout.WHOLE_EXPERIMENT

    def _conclude(self, run: RayAttemptJob, outcome: RunnerOutcome) -> dict[str, Any]:
        refuse_unfinished(run.plan, outcome)
        summary = commit_restore(run.store, run.plan.restore_id)
        return describe_continued(run.address, summary, log=self.log)

    def _run(
        self, store: ObjectStore, plan: RestorePlan, launcher: "LocalLauncher"
    ) -> RunnerOutcome:
        done = AttemptRecords(store, plan.restore_id, layout.WHOLE_EXPERIMENT).outcome()
        if done is not None and done.result == Result.FINISHED:
            self.log.info("An earlier try of this task has drawn them already.")
            return done
        request = claim_attempt(
            store,
            plan,
            layout.WHOLE_EXPERIMENT,
            RunnerSettings(
                trainable=str(self.trainable),
                param_space=parse_text(self.param_space),
                search_alg=parse_text(self.search_alg),
                imports=self.imports,
                address=parse_text(self.ray_address),
            ),
        )
        self._process = process = launcher.start(request)
        try:
            for line in process.lines():
                self.log.info("%s", describe_line(line, plan.metric))
            exit_code = process.wait()
            self._process = None
        finally:
            self.on_kill()
        outcome = AttemptRecords(store, plan.restore_id, layout.WHOLE_EXPERIMENT).outcome(
            request.attempt
        )
        if outcome is None:
            raise RunnerError(
                f"The run of {plan.experiment} ended (exit {exit_code}) without saying how. A retry goes "
                "on from its newest snapshot."
            )
        return outcome
