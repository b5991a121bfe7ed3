"""What the operators of a trial share, wherever it runs: claim an attempt, show it, judge its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_tune_restore.exceptions import OvertakenError, RunnerDiedError, TrialFailedError
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import (
    list_attempts,
    read_outcome_or_interrupted,
    record_exit,
)
from airflow_tune_restore.protocol.failures import Cause, classify_exit
from airflow_tune_restore.protocol.numbers import strict_json
from airflow_tune_restore.protocol.request import (
    EXIT_FENCED,
    Result,
    RunnerOutcome,
    RunnerRequest,
)
from airflow_tune_restore.protocol.resources import describe
from airflow_tune_restore.restore.claim import claim_attempt
from airflow_tune_restore.restore.ledger import memory_to_ask, read_history, seen_before
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.summary import printable
from airflow_tune_restore.storage.base import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

LAST_LINES = 5
"""How many of a runner's last lines are kept for the case that it ends without an outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerArguments:
    """What a runner is told that the plan does not say.

    Args:
        trainable: `package.module:attribute`, or a name registered with Tune.
        param_space: `package.module:attribute` of a re-specified param_space, or None.
        search_alg: `package.module:attribute` of a searcher, or None.
        imports: Modules to import first.
        address: Ray cluster to connect to; None starts a private one.
        runtime_env: Ray runtime_env for the connection.
        can_grow: Whether more memory can be asked for: a private Ray is as large as its machine.
        concurrent: For how many trials at the same time the one run of all asks.
        memory: Bytes that a trial has which asks for none, where it runs; None if nobody knows.
        reports: Whether results are written to storage, too: we do not read the runner's stdout.
        sized: Whether a place is made for the attempt, as large as it asks for.
    """

    trainable: str
    param_space: str | None = None
    search_alg: str | None = None
    imports: Sequence[str] = ()
    address: str | None = None
    runtime_env: dict[str, Any] = field(default_factory=dict)
    can_grow: bool = False
    concurrent: int = 1
    memory: float | None = None
    reports: bool = False
    sized: bool = False


def claim(
    store: ObjectStore,
    plan: RestorePlan,
    trial_id: str,
    arguments: RunnerArguments,
    *,
    log: "Logger",
    attempt: int | None = None,
    unstarted: RunnerRequest | None = None,
) -> RunnerRequest:
    """Claim the next attempt of a trial; one that ran out of memory asks for more.

    `unstarted` was claimed before and never started; it is taken if it is what would be claimed now.

    Raises:
        KeyExistsError: If `attempt`, the one number wanted, is taken.
    """
    history = read_history(store, plan.restore_id, trial_id)
    memory = memory_to_ask(plan, trial_id, history)
    if memory is not None and arguments.can_grow:
        log.info("It ran out of memory: asking for %.1f GiB.", memory / 1024**3)
    elif memory is not None:
        log.info("It ran out of memory; a private Ray cannot be asked for more of it.")
    elif trial_id != layout.WHOLE_EXPERIMENT and "memory" not in plan.trial(trial_id).resources:
        memory = arguments.memory  # so that twice as much is known, should it not suffice
    request = claim_attempt(
        store,
        plan,
        trial_id,
        trainable=arguments.trainable,
        param_space=arguments.param_space,
        search_alg=arguments.search_alg,
        imports=arguments.imports,
        address=arguments.address,
        runtime_env=dict(arguments.runtime_env),
        attempt=attempt,
        unstarted=unstarted,
        memory=memory if arguments.can_grow else None,
        concurrent=arguments.concurrent,
        reports=arguments.reports,
        sized=arguments.sized,
    )
    before = read_outcome_or_interrupted(store, plan.restore_id, trial_id, request.attempt - 1)
    if before is not None and before.resources:
        log.info(
            "Attempt %d ran nothing, because its pod was too small: a trial asks for %s now. The next "
            "pod is made for %s.",
            *(before.attempt, describe(before.resources), describe(request.resources)),
        )
    return request


def judge(
    store: ObjectStore,
    plan: RestorePlan,
    item: TrialXCom,
    outcome: RunnerOutcome,
    *,
    log: "Logger",
    because: str = "",
) -> dict[str, Any]:
    """Return the summary of a finished trial; every other end fails the task.

    `because` is why it was stopped, if that is known.

    Raises:
        TrialFailedError: If the trial failed again.
        AirflowException: If it was stopped; a retry goes on from its snapshot.
        AirflowFailException: If it was refused or fenced.
    """
    cause = printable(f"{outcome.error_type}: {outcome.error}".removeprefix(": "))
    name = f"Trial {item.trial_id} of {plan.experiment}"
    match Result(outcome.result):
        case Result.FINISHED:
            log.info("%s finished at iteration %d.", name, outcome.iteration)
            return _summary(item, outcome)
        case Result.FAILED:
            kept = f"{cause}, after iteration {outcome.iteration}"
            final = _why_final(store, plan, outcome)
            why = outcome.cause or Cause.UNKNOWN.value
            raise TrialFailedError(plan.experiment, item.trial_id, kept, why, final)
        case Result.INTERRUPTED if outcome.cause == Cause.NO_ROOM:
            raise AirflowException(f"{name} found no room; its snapshot is saved. {cause}")
        case Result.INTERRUPTED:
            why = f" ({because})" if because else ""
            raise AirflowException(
                f"{name} was stopped at iteration {outcome.iteration}{why}; its snapshot is saved and a "
                "retry goes on from there."
            )
        case Result.REFUSED:
            raise AirflowFailException(f"{name} was not started: {cause}")
        case Result.FENCED:
            raise AirflowFailException(
                f"{name} was given up: a newer attempt or restore has taken over. {cause}"
            )


def record_death(
    store: ObjectStore,
    plan: RestorePlan,
    request: RunnerRequest,
    exit_code: int | None,
    last_lines: Sequence[str],
) -> RunnerDiedError:
    """Keep what was seen of a runner that ended without an outcome, and return the error to raise.

    Raises:
        OvertakenError: If another try of the task runs the trial.
        LeaseLostError: If another restore is at work.
    """
    said = "\n".join(last_lines)
    record_exit(store, request, exit_code, said)
    refuse_overtaken(store, plan, request, exit_code)
    failure = classify_exit(exit_code, said)
    cause = failure.cause if failure is not None else Cause.UNKNOWN
    ended = "" if exit_code is None else f"It ended with exit code {exit_code}. "
    words = f"{ended}It last said: {' | '.join(last_lines)}"
    return RunnerDiedError(plan.experiment, request.trial_id, words, cause.value)


def refuse_overtaken(
    store: ObjectStore, plan: RestorePlan, request: RunnerRequest, exit_code: int | None
) -> None:
    """Raise if a runner that left no outcome ended because somebody else has taken over.

    Raises:
        OvertakenError: If another try of the task runs the trial.
        LeaseLostError: If another restore is at work.
    """
    newest = max(list_attempts(store, plan.restore_id, request.trial_id), default=0)
    if newest > request.attempt:
        raise OvertakenError(plan.experiment, request.trial_id, request.attempt, newest)
    if exit_code == EXIT_FENCED:
        lease.check_held(store, plan.restore_id)


def _why_final(store: ObjectStore, plan: RestorePlan, outcome: RunnerOutcome) -> str:
    """Say why a retry would fail in the same way; "" if it may not."""
    if plan.is_whole_experiment:
        return "The run of all trials has ended it; the next restore takes it up"
    failures = read_history(store, plan.restore_id, outcome.trial_id).failures
    before = seen_before(failures, plan.restore_id, outcome.attempt)
    if before is None:
        return ""
    return (
        f"It failed at the same place and iteration before ({before.place}, attempt {before.attempt} of "
        f"restore {before.restore_id}), so it is not retried"
    )


def _summary(item: TrialXCom, outcome: RunnerOutcome) -> dict[str, Any]:
    return {
        "experiment": item.experiment,
        "trial_id": item.trial_id,
        "final_trial_id": outcome.final_trial_id,
        "status": outcome.status,
        "iteration": outcome.iteration,
        "metrics": strict_json(outcome.metrics),
        "attempt": outcome.attempt,
    }
