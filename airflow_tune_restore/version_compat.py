"""Where Airflow 3.1 to 3.4 keep what they all have, and what stands in for what older ones lack.

This is the only module that knows of versions of Airflow. Every name that has moved is imported from
here. `docs/compatibility.md` has what a user of an older version sees.
"""

import asyncio
import configparser
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from airflow.exceptions import AirflowConfigException
from airflow.sdk import BaseOperator, Context
from airflow.sdk.execution_time import comms
from airflow.triggers.base import BaseEventTrigger, BaseTrigger
from asgiref.sync import sync_to_async

try:
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
        TaskDeferralTimeout,
        XComNotFound,
    )
except ImportError:  # before 3.2
    from airflow.configuration import conf
    from airflow.exceptions import (  # type: ignore[attr-defined, no-redef]
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
        TaskDeferralTimeout,
        XComNotFound,
    )

__all__ = [
    "ASKING",
    "CONFIG_ERRORS",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "AirflowTaskTimeout",
    "EventTrigger",
    "KillableTrigger",
    "RetryAction",
    "RetryDecision",
    "RetryPolicy",
    "TaskDeferralTimeout",
    "XComNotFound",
    "conf",
    "decide_retry",
    "execution_api_url",
    "fails_for_good",
    "forget_queued",
    "in_thread",
    "keep_default_policy",
    "key_of_task",
    "knows_task_uuids",
    "policy_arguments",
    "read_request",
    "request_dag_run",
    "response_arguments",
    "runs_callbacks",
    "take_queued",
]

# Configuration

try:
    from airflow.sdk.exceptions import AirflowConfigException as _SdkConfigException
except ImportError:  # before 3.2
    _SdkConfigException = AirflowConfigException  # type: ignore[misc, assignment]

CONFIG_ERRORS = (configparser.Error, AirflowConfigException, _SdkConfigException)
"""Errors of `conf.get`, also of an executor's `conf`. Since 3.2 they are not AirflowExceptions."""


# Retry policies, since 3.3

try:
    from airflow.sdk import RetryDecision, RetryPolicy
    from airflow.sdk.definitions.retry_policy import RetryAction

    _HAS_RETRY_POLICIES = True
except ImportError:
    _HAS_RETRY_POLICIES = False
    if not TYPE_CHECKING:

        class RetryAction(StrEnum):
            """As `airflow.sdk.definitions.retry_policy.RetryAction`."""

            RETRY = "retry"
            FAIL = "fail"
            DEFAULT = "default"

        @dataclass(frozen=True)
        class RetryDecision:
            """As `airflow.sdk.RetryDecision`."""

            action: RetryAction
            retry_delay: timedelta | None = None
            reason: str | None = None

            @classmethod
            def fail(cls, reason: str | None = None) -> "RetryDecision":
                """Fail for good."""
                return cls(RetryAction.FAIL, reason=reason)

            @classmethod
            def retry(cls, delay: timedelta, reason: str | None = None) -> "RetryDecision":
                """Retry after a delay."""
                return cls(RetryAction.RETRY, delay, reason)

            @classmethod
            def default(cls) -> "RetryDecision":
                """Retry as the task's own arguments have it."""
                return cls(RetryAction.DEFAULT)

        class RetryPolicy:
            """As `airflow.sdk.RetryPolicy`; `decide_retry` asks it, and Airflow does not."""


def policy_arguments(policy: RetryPolicy | None) -> dict[str, Any]:
    """Return the arguments of `BaseOperator.__init__` for a retry policy."""
    return {"retry_policy": policy} if _HAS_RETRY_POLICIES else {}


def keep_default_policy(
    partial: Any, operator: type[BaseOperator], given: Mapping[str, Any]
) -> Any:
    """Return what `partial()` of an operator returned, with the retry policy that a plain task has.

    Airflow 3.3.0 and 3.3.1 take the default of `BaseOperator`, which is None, in the place of the
    operator's own. Before 3.3, Airflow drops what the task's `default_args` have for an argument that it
    does not know.
    """
    kwargs = partial.kwargs
    sources = [given, given.get("default_args"), kwargs["dag"] and kwargs["dag"].default_args]
    if not _HAS_RETRY_POLICIES:
        if "retry_policy" not in given and "retry_policy" in (given.get("default_args") or {}):
            kwargs["retry_policy"] = given["default_args"]["retry_policy"]
        return partial
    group = kwargs["task_group"]
    while group is not None:
        sources.append(group.default_args)
        group = group.parent_group
    if not any("retry_policy" in source for source in sources if source):
        kwargs["retry_policy"] = _own_default(operator, "retry_policy")
    return partial


def _own_default(operator: type, argument: str) -> Any:
    """Return the default that the most derived class with this argument has for it."""
    for base in operator.__mro__:
        if "__init__" in vars(base):
            found = inspect.signature(vars(base)["__init__"]).parameters.get(argument)
            if found is not None:
                return found.default
    raise TypeError(f"{operator.__name__} has no argument {argument}")


def decide_retry(operator: BaseOperator, error: Exception, context: Context) -> RetryDecision:
    """Return what becomes of a task that ends with this error and has tries left.

    Before 3.3 a policy can fail the task for good (`fails_for_good`), and cannot set the wait.
    """
    policy = getattr(operator, "retry_policy", None)
    if policy is None:
        return RetryDecision.default()
    ti = context["ti"]
    decision: RetryDecision = policy.evaluate(error, ti.try_number, ti.max_tries, context)
    if _HAS_RETRY_POLICIES or decision.action is RetryAction.FAIL:
        return decision
    return RetryDecision.default()


def fails_for_good(operator: BaseOperator, error: Exception, context: Context) -> bool:
    """Whether the retry policy refuses a retry, and Airflow does not ask it: before 3.3."""
    if _HAS_RETRY_POLICIES:
        return False
    return decide_retry(operator, error, context).action is RetryAction.FAIL


# Triggers

_CALLS_ON_KILL = hasattr(BaseTrigger, "on_kill")


class KillableTrigger(BaseTrigger):
    """A trigger whose `on_kill` is called when a user kills its task: by hand, or with its DAG run.

    Before 3.3, Airflow only calls `cleanup`, whenever a trigger ends: after its event, after a kill, and
    when the triggerer ends. So `on_kill` must ask whether the task still waits (`still_waits`).

    Attributes:
        has_fired: Set right before the event is yielded.
    """

    has_fired = False

    async def cleanup(self) -> None:
        """Call `on_kill` if Airflow does not, and a task's trigger ends without an event."""
        await super().cleanup()
        if not (_CALLS_ON_KILL or self.has_fired) and self.task_instance is not None:
            try:
                await self.on_kill()
            except Exception:  # noqa: BLE001  a triggerer before 3.3 would drop it without a word
                self.log.exception("on_kill() raised an exception")  # as since 3.3

    async def on_kill(self) -> None:
        """Stop what the trigger waits for."""


if TYPE_CHECKING or _CALLS_ON_KILL:  # both came with 3.3
    EventTrigger = BaseEventTrigger
else:

    class EventTrigger(BaseEventTrigger):
        """A trigger of an asset. Before 3.3 an asset has no store of state."""

        asset_state_store = None


# Threads that ask Airflow, for a connection or the state of a task

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C", bound=type)

_ANSWERS_THREADS = hasattr(comms.CommsDecoder, "_thread_lock")
ASKING: AbstractContextManager[Any] = nullcontext() if _ANSWERS_THREADS else threading.RLock()
"""Held by a thread of a task that asks. Before 3.2, the answers to two at the same time get mixed up."""


async def in_thread(function: Callable[_P, _R], /, *arguments: _P.args, **options: _P.kwargs) -> _R:
    """Run a function of a trigger that may ask in a thread, as `asyncio.to_thread` does.

    Before 3.2.2, Airflow answers only threads of asgiref in a triggerer: the question of another one ends
    the triggerer ("Response read out of order!"). So does a question that is cancelled before its answer
    was read; asgiref would cancel it together with the call, hence the shield. (In 3.2.0 and 3.2.1, a
    trigger that asks on the event loop meanwhile can still lock it up.)
    """
    running = sync_to_async(function, thread_sensitive=False)
    return await asyncio.shield(running(*arguments, **options))


# Executors


def execution_api_url(conf_of_executor: Any) -> str:
    """Return the address at which workers reach the execution API.

    As `airflow.executors.base_executor.get_execution_api_server_url` since 3.3; before, each executor
    reads the configuration by itself.
    """
    from airflow.executors import base_executor

    if hasattr(base_executor, "get_execution_api_server_url"):
        return str(base_executor.get_execution_api_server_url(conf_of_executor))
    base = conf_of_executor.get("api", "base_url", fallback="/") or "/"
    if base.startswith("/"):
        base = f"http://localhost:8080{base}"
    default = f"{base.rstrip('/')}/execution/"
    return str(conf_of_executor.get("core", "execution_api_server_url", fallback=default))


def knows_task_uuids() -> bool:
    """Whether executors may name a task by its id, in place of its DAG, run and try: since 3.4."""
    from airflow.executors.base_executor import BaseExecutor

    return hasattr(BaseExecutor, "get_task_key")


def key_of_task(executor: Any, task: Any) -> Any:
    """Return the key under which an executor and the scheduler know a task."""
    return executor.get_task_key(task) if knows_task_uuids() else task.key


def take_queued(executor: Any, workload: Any) -> Any:
    """Take a workload out of an executor's queue, and return its key."""
    if hasattr(executor, "executor_queues"):  # since 3.4
        key = executor.get_workload_key(workload)
        del executor.executor_queues[workload.type][key]
    elif hasattr(workload, "ti"):
        key = workload.ti.key
        del executor.queued_tasks[key]
    else:
        key = workload.key
        del executor.queued_callbacks[key]
    return key


def forget_queued(executor: Any, key: Any) -> None:
    """Take a task out of an executor's queue, if it is there."""
    if hasattr(executor, "executor_queues"):
        for queued in executor.executor_queues.values():
            queued.pop(key, None)
    else:
        executor.queued_tasks.pop(key, None)


def runs_callbacks(executor: _C) -> _C:
    """Let an executor also run callbacks of deadlines, which Airflow sends to executors since 3.2.

    Workers that are started with a file run them since 3.3 (`BaseExecutor.run_workload`).
    """
    from airflow.executors import workloads
    from airflow.executors.base_executor import BaseExecutor

    if hasattr(BaseExecutor, "supported_workload_types"):  # since 3.4
        known: Any = workloads
        kinds = {known.WorkloadType.EXECUTE_TASK, known.WorkloadType.EXECUTE_CALLBACK}
        executor.supported_workload_types = frozenset(kinds)  # type: ignore[attr-defined]
    elif hasattr(BaseExecutor, "run_workload"):
        executor.supports_callbacks = True  # type: ignore[attr-defined]
    return executor


# DAG runs


def request_dag_run(dag_id: str, run_id: str) -> "comms.GetDagRun | None":
    """Return the request for a DAG run and its start; None before 3.2, which tells only its state."""
    kind = getattr(comms, "GetDagRun", None)
    return kind and kind(dag_id=dag_id, run_id=run_id)


# Human in the loop


def response_arguments(operator: type, timeout: timedelta | None) -> dict[str, Any]:
    """Return the arguments of an operator of Airflow that waits so long for a person.

    Before version 1.13 of the standard provider, `execution_timeout` was that time. Since then it stands
    in for `response_timeout`. So that of the DAG's other tasks is never inherited.
    """
    known = [inspect.signature(base).parameters for base in operator.__mro__ if base is not object]
    if any("response_timeout" in parameters for parameters in known):
        return {"response_timeout": timeout, "execution_timeout": None}
    return {"execution_timeout": timeout}


def read_request(operator: Any, context: Context) -> Any:
    """Ask Airflow to show the request of an `ApprovalOperator`, and return what it shows: its page.

    Of a task that was cleared, or that is tried again, Airflow up to 3.3 keeps the first request.
    """
    from airflow.sdk.execution_time import task_runner  # heavy, and only for a task that asks

    return task_runner.SUPERVISOR_COMMS.send(
        comms.CreateHITLDetailPayload(
            ti_id=context["ti"].id,
            options=operator.options,
            subject=operator.subject,
            body=operator.body,
            defaults=operator.defaults,
            multiple=operator.multiple,
            params=operator.serialized_params,
            assigned_users=operator.assigned_users or [],
        )
    )
