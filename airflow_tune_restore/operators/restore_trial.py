"""Runs one trial of a restore, as one (mapped) task."""

from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from airflow.sdk import Context, RetryPolicy

from airflow_tune_restore.arguments import parse_text, parse_user
from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.hooks.experiment_storage import Address, ExperimentStorageHook
from airflow_tune_restore.launch.local import build_launcher
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.operators.attempt import judge
from airflow_tune_restore.operators.map_index_label import TRIAL_LABEL
from airflow_tune_restore.operators.ray.attempt_job import RayAttemptJob
from airflow_tune_restore.operators.ray.base import RAY, RayJobOperator
from airflow_tune_restore.operators.retry_policy import TRIAL_RETRY_POLICY
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import (
    Result,
    RunnerOutcome,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.claim import RunnerSettings, claim_next_attempt
from airflow_tune_restore.restore.follow import Follower, ask_to_stop
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.runner_death import LAST_LINES, record_death
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow_tune_restore.launch.process import RunnerProcess

STOP_GRACE_SECONDS = 30.0
"""How long a runner that was told to stop may take to save a snapshot.

Airflow kills a task 5 s after its SIGTERM; the runner, in a session of its own, still finishes saving.
"""


class RestoreTrialOperator(RayJobOperator):
    """Resumes or restarts one trial, as the plan says, and follows it to its end.

    Where trials are coupled (strategy `whole_experiment`), all tasks of an experiment share one real
    `Tuner.restore(…).fit()`: the first to come starts it, each follows, logs and ends with its own trial,
    and killing a task stops its trial alone. The run outlives the task that started it; so it needs
    workers that outlive a task, which pods of the KubernetesExecutor do not.

    `RestoreTrialOperator.partial(task_id=…, trainable=…).expand(trial=plan.output)` makes one task a
    trial. The runner's output appears in the task's log line by line. Killing the task (by hand, by
    `execution_timeout`) lets the runner save a snapshot first; a retry goes on from the newest snapshot
    or checkpoint, so give the task `retries` of 1 or more. A trial that failed again fails the task; its
    progress is kept and committed.

    Args:
        trial: One item of `BuildRestorePlanOperator`'s output. (templated)
        trainable: `package.module:attribute`, or a name registered with Tune. It must have the recorded
            name, and be importable where the trial runs. (templated)
        param_space: `package.module:attribute` of a re-specified param_space, a dict or a function
            without arguments; its flat keys must be the recorded ones. (templated)
        search_alg: `package.module:attribute` of a searcher, a function without arguments that makes one,
            a Tuner or a TuneConfig. Needed, and used, only where `tuner.pkl` is lost and samples are
            left that Ray's default searcher cannot draw. (templated)
        launcher: Where the trial runs. `local`: in a child process of the worker. `ray`: as a job of the
            cluster that `ray_conn_id` names, waited for in the triggerer. (templated)
        python: Interpreter that has Ray and the trainable; the worker's own by default. (templated)
        runner_user: Whom runners run as on the worker: the name or number of a user. For
            `launcher="local"` on a worker that is root. By default they have the worker's own user, and
            can read what it can: its files and, in `/proc`, Airflow's secrets in its environment. Another
            word than Airflow's `run_as_user`, which starts the whole task as that user, with Airflow's
            variables (`sudo -E`), so that a runner of the same user could read them. (templated)
        ray_address: Ray cluster to run on, as `ray://head:10001` or `head:6379`; without, the runner
            starts a private Ray as large as the trial asks for. (templated)
        imports: Modules the runner imports first; they may register trainables or environments.
        env: Environment variables of the runner. No secrets: they stand in the DAG's code and in its
            serialized form. Credentials belong into the storage connection.
        storage_conn_id: Airflow connection to open the experiment with; by default the one in the
            trial's address. (templated)
        retry_policy: By default `TrialRetryPolicy`: no retry of what fails in the same way again, a
            longer wait after running out of memory and for a store. None for Airflow's plain retries.
        kwargs: With `launcher="ray"`: `ray_conn_id`, `runtime_env`, `entrypoint_num_cpus`,
            `entrypoint_memory`, `entrypoint_resources`, `deferrable`, `poll_interval`, see
            `RayJobOperator`; and those of every operator.
    """

    map_index_label = TRIAL_LABEL
    template_fields = (
        "trial",
        "trainable",
        "param_space",
        "search_alg",
        "launcher",
        "ray_conn_id",
        "python",
        "runner_user",
        "ray_address",
        "storage_conn_id",
    )
    template_fields_renderers = {"trial": "json"}  # noqa: RUF012  as Airflow declares it
    ui_color = "#e2f2e4"

    def __init__(  # noqa: PLR0913  what to run, where, and with what
        self,
        *,
        trial: Any,
        trainable: str,
        param_space: str | None = None,
        search_alg: str | None = None,
        launcher: str = "local",
        python: str | None = None,
        runner_user: str | None = None,
        ray_address: str | None = None,
        imports: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        storage_conn_id: str | None = None,
        retry_policy: RetryPolicy | None = TRIAL_RETRY_POLICY,
        **kwargs: Any,
    ) -> None:
        super().__init__(retry_policy=retry_policy, **kwargs)
        self.trial = trial
        self.trainable = trainable
        self.param_space = param_space
        self.search_alg = search_alg
        self.launcher = launcher
        self.python = python
        self.runner_user = runner_user
        self._has_user = runner_user is not None
        self.ray_address = ray_address
        self.imports = imports
        self.env = env
        self.storage_conn_id = storage_conn_id
        self._process: RunnerProcess | None = None
        self._followed: tuple[ObjectStore, str, str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Claim an attempt, run it, and say how it ended."""
        with as_airflow_errors():
            # asked for before anything is claimed
            parse_user(self.runner_user, was_given=self._has_user)
            item = TrialXCom.parse(self.trial)
            hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
            address = hook.address(item.experiment)
            store = hook.open(address)
            plan = read_plan(store, item.restore_id)
            if self.launcher == RAY:
                lease.renew(store, lease.check_held(store, item.restore_id))
                return self._execute_ray_job(context, self._ray_run(item.restore_id))
            if plan.is_whole_experiment:
                followed = self._follow(hook, store, plan, item)
                return judge(store, plan, item, followed, log=self.log)
            outcome = AttemptRecords(store, item.restore_id, item.trial_id).outcome()
            if outcome is None or outcome.result != Result.FINISHED:
                lease.renew(store, lease.check_held(store, item.restore_id))
                with hook.runner_env(address) as credentials:
                    outcome = self._run(store, plan, item, credentials)
            else:
                self.log.info("An earlier try of this task has finished the trial already.")
            return judge(store, plan, item, outcome, log=self.log)

    def on_kill(self) -> None:
        """Let the runner save a snapshot and end; asked twice, it waits once.

        The run of a whole experiment is asked to stop this trial alone; the others go on.
        """
        super().on_kill()
        followed, self._followed = self._followed, None
        if followed is not None:
            self.log.info("Asking the run to stop this trial; the others go on.")
            ask_to_stop(*followed)
        process, self._process = self._process, None
        if process is not None:
            self.log.info("Stopping the runner; it saves a snapshot first.")
            process.stop(STOP_GRACE_SECONDS)

    def _target(self) -> tuple[ExperimentStorageHook, Address, str]:
        item = TrialXCom.parse(self.trial)
        hook = ExperimentStorageHook(parse_text(self.storage_conn_id))
        return hook, hook.address(item.experiment), item.trial_id

    def _conclude(self, run: RayAttemptJob, outcome: RunnerOutcome) -> dict[str, Any]:
        return judge(run.store, run.plan, TrialXCom.parse(self.trial), outcome, log=self.log)

    def _run(
        self,
        store: ObjectStore,
        plan: RestorePlan,
        item: TrialXCom,
        credentials: Mapping[str, str],
    ) -> RunnerOutcome:
        launcher = build_launcher(
            self.launcher,
            python=parse_text(self.python),
            env={**credentials, **(self.env or {})},
            runner_user=parse_user(self.runner_user, was_given=self._has_user),
        )
        request = self._claim(store, plan, item.trial_id)
        self.log.info(
            "%s trial %s of %s: attempt %d of restore %s",
            *(request.action, item.trial_id, plan.experiment, request.attempt, plan.restore_id),
        )
        self._process = process = launcher.start(request)
        last: list[str] = []
        try:
            for line in process.lines():
                shown = describe_line(line, plan.metric)
                self.log.info("%s", shown)
                last = [*last[1 - LAST_LINES :], shown]
            exit_code = process.wait()
            self._process = None
        finally:
            self.on_kill()  # a timeout or an error of ours: no runner is left behind
        outcome = AttemptRecords(store, plan.restore_id, item.trial_id).outcome(request.attempt)
        if outcome is None:
            raise record_death(store, plan, request, exit_code, last)
        return outcome

    def _follow(
        self, hook: ExperimentStorageHook, store: ObjectStore, plan: RestorePlan, item: TrialXCom
    ) -> RunnerOutcome:
        """Attach to the one run of the experiment, or start it, until this trial ends."""
        lease.renew(store, lease.check_held(store, item.restore_id))
        output = _Output(self.log.info)

        def start(attempt: int) -> None:
            request = self._claim(store, plan, layout.WHOLE_EXPERIMENT, attempt)
            self.log.info("Starting the run of the whole experiment, attempt %d.", attempt)
            with hook.runner_env(hook.address(item.experiment)) as credentials:
                launcher = build_launcher(
                    self.launcher,
                    python=parse_text(self.python),
                    env={**credentials, **(self.env or {})},
                    runner_user=parse_user(self.runner_user, was_given=self._has_user),
                )
                output.open(launcher.start_detached(request))

        follower = Follower(store, item.restore_id, item.trial_id, start)
        self._followed = (store, item.restore_id, item.trial_id)
        try:
            for progress in follower.progress():
                output.show_new()
                if progress is not None:
                    self.log.info("%s", describe_line(progress.to_line(), plan.metric))
            self._followed = None
        except TuneRestoreError:
            self._followed = None  # the run goes on without us; a retry attaches again
            raise
        finally:
            output.close()
            self.on_kill()  # a timeout: this trial is given back
        assert follower.outcome is not None  # noqa: S101  progress() ends with one
        return follower.outcome

    def _claim(
        self, store: ObjectStore, plan: RestorePlan, trial_id: str, attempt: int | None = None
    ) -> RunnerRequest:
        address = parse_text(self.ray_address)
        arguments = RunnerSettings(
            trainable=str(self.trainable),
            param_space=parse_text(self.param_space),
            search_alg=parse_text(self.search_alg),
            imports=self.imports,
            address=address,
            # a private Ray needs none: it inherits what its runner has
            runtime_env=dict(self.runtime_env or {}) if address is not None else {},
            can_grow=address is not None,
        )
        return claim_next_attempt(
            store, plan, trial_id, arguments, log=self.log.info, attempt=attempt
        )


class _Output:
    """What the run itself prints, shown by the task that started it; results are shown by each task."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        self._show = show
        self._file: IO[str] | None = None

    def open(self, file: IO[str]) -> None:
        """Show what this file holds from now on."""
        self.close()
        self._file = file

    def show_new(self) -> None:
        """Show the whole lines that came since the last call."""
        while self._file is not None:
            before = self._file.tell()
            line = self._file.readline()
            if not line.endswith("\n"):
                self._file.seek(before)
                return
            if RunnerProgress.from_line(line) is None:
                self._show("%s", describe_line(line.rstrip("\n"), None))

    def close(self) -> None:
        """Stop showing."""
        if self._file is not None:
            self.show_new()
            self._file.close()
            self._file = None
