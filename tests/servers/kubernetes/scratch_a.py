import json, threading, time, asyncio
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow_tune_restore.hooks.plain_errors import original
from airflow_tune_restore.restore.attempts import read_outcome, list_attempts
from tests.support.kubernetes.api import IMAGE, NAMESPACE, Fault
from tests.support.kubernetes.pods import pod_context
from tests.support.kubernetes.stand_in import follow

both = pytest.mark.parametrize("deferred", [False, True], ids=["w", "d"])
def run(trial, *, deferred, **more):
    return trial.run_deferred(**more) if deferred else trial.run(**more)
def after(w): threading.Thread(target=w, daemon=True).start()
def show(error):
    print("\nERR", type(error).__name__, str(error)); print("ORIG", type(original(error)).__name__, repr(original(error))[:300])

def attempt(trial, deferred, **more):
    try:
        r = run(trial, deferred=deferred, **more); print("\nRESULT", r["status"], r["attempt"])
    except BaseException as e: show(e)
    print("FAILURES", [(f.attempt, f.cause, f.message) for f in trial.failures])

@both
def test_preempt(trial, api, deferred):
    after(lambda: api.kubelet.preempt(trial.await_work(), grace=0))
    attempt(trial, deferred)
    trial.open(); attempt(trial, deferred)

@both
def test_kubectl_delete(trial, api, deferred):
    after(lambda: api.delete(NAMESPACE, trial.await_work(), None))
    attempt(trial, deferred)

@pytest.mark.parametrize("result", ["failed", "none", "interrupted", "refused", "fenced"])
def test_event_then_gone(trial, api, result):
    """The trigger saw it fail; it was collected before the worker came back."""
    more = dict(deferrable=True, logging_interval=1, poll_interval=0.05, env={"STAND_IN_RESULT": result, "STAND_IN_EXIT": "1"})
    op = trial.operator(**more)
    with pytest.raises(TaskDeferred) as d: op.execute(pod_context())
    trial.open()
    event = follow(d.value)
    print("\nEVENT", {k: v for k, v in event.items() if k != "stack_trace"})
    api.delete(NAMESPACE, api.pod_names()[0], 0)
    api.wait_for(lambda pods: not pods)
    try: print(trial.operator(**more).trigger_reentry(pod_context(), event))
    except BaseException as e: show(e)
    print("FAILURES", [(f.attempt, f.cause, f.message) for f in trial.failures])

@both
def test_exec_timeout(trial, api, deferred):
    from datetime import timedelta
    if not deferred: return
    after(lambda: None)
    attempt(trial, deferred, execution_timeout=timedelta(seconds=2), termination_grace_period=5)
