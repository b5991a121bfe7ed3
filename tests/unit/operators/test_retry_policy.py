"""Which ends of a trial Airflow tries again, and when."""

import pickle
from datetime import timedelta

import pytest
from airflow.sdk import DAG, TaskGroup

from airflow_tune_restore.exceptions import (
    LeaseHeldError,
    RayClusterError,
    RunnerDiedError,
    StorageError,
    TrialFailedError,
)
from airflow_tune_restore.hooks.airflow_errors import as_airflow_errors
from airflow_tune_restore.operators.prepare_restores import DEFAULT_LEASE_TTL
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.retry_policy import (
    LONGEST_WAIT,
    TRIAL_RETRY_POLICY,
    TrialRetryPolicy,
)
from airflow_tune_restore.version_compat import (
    AirflowException,
    RetryAction,
    RetryDecision,
    RetryPolicy,
)
from tests.support.airflow.names import DagSerialization, since_3_3


def as_airflow_sees(error: Exception) -> BaseException:
    """Return what leaves an operator for an error of ours."""
    with pytest.raises(AirflowException) as raised, as_airflow_errors():
        raise error
    return raised.value


def decide(error: BaseException, try_number: int = 1) -> RetryDecision:
    return TrialRetryPolicy().evaluate(error, try_number, 5)


def failed(cause: str, final: str = "") -> TrialFailedError:
    return TrialFailedError("s3://b/exp", "t1", "ValueError: no", cause, final)


def test_a_failure_that_repeats_fails_at_once():
    decision = decide(as_airflow_sees(failed("trainable", "the same again")))
    assert decision == RetryDecision.fail("the same again")


@pytest.mark.parametrize("cause", ["actor_died", "node_lost", "killed"])
def test_a_lost_process_is_tried_again_soon(cause):
    for error in (failed(cause), RunnerDiedError("s3://b/exp", "t1", "it was killed", cause)):
        decision = decide(as_airflow_sees(error), try_number=4)
        assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(seconds=30))


@pytest.mark.parametrize(
    "error",
    [
        failed("storage"),
        failed("out_of_memory"),
        StorageError("no answer"),
        RayClusterError("Ray cluster http://head:8265: no answer."),
    ],
    ids=["storage", "out_of_memory", "our own store", "the cluster"],
)
def test_a_store_and_a_full_node_are_given_time(error):
    waits = [decide(as_airflow_sees(error), n).retry_delay for n in (1, 2, 3, 9, 10_000)]
    assert waits[:3] == [timedelta(minutes=minutes) for minutes in (1, 2, 4)]
    assert waits[3:] == [LONGEST_WAIT, LONGEST_WAIT]


def test_no_wait_is_longer_than_the_lease():
    assert LONGEST_WAIT < DEFAULT_LEASE_TTL


@pytest.mark.parametrize(
    "error",
    [
        failed("trainable"),
        failed("unknown"),
        LeaseHeldError("e", "r", "h", 1.0),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_all_else_is_left_to_the_task(error):
    seen = error if isinstance(error, ValueError) else as_airflow_sees(error)
    assert decide(seen) == RetryDecision.default()


def test_a_stopped_trial_waits_for_the_retry_delay_of_its_task():
    assert decide(AirflowException("stopped at iteration 3")) == RetryDecision.default()


def test_the_policy_survives_pickling_and_its_own_serialization():
    again = pickle.loads(pickle.dumps(TRIAL_RETRY_POLICY))  # noqa: TID251
    assert isinstance(again, TrialRetryPolicy)
    assert isinstance(TrialRetryPolicy.deserialize(again.serialize()), TrialRetryPolicy)


class Own(RetryPolicy):
    def evaluate(self, exception, try_number, max_tries, context=None):
        return RetryDecision.fail("mine")


def trial(**arguments):
    return RestoreTrialOperator(task_id="t", trial={}, trainable="a:b", **arguments)


def mapped(**arguments):
    return RestoreTrialOperator.partial(task_id="m", trainable="a:b", **arguments).expand(
        trial=[{}]
    )


def unmapped(**arguments):
    return mapped(**arguments).unmap({"trial": {}})


@pytest.mark.parametrize("make", [trial, unmapped, pytest.param(mapped, marks=since_3_3)])
def test_trials_have_it_by_default(make):
    own = Own()
    assert make().retry_policy is TRIAL_RETRY_POLICY
    assert make(retry_policy=own).retry_policy is own
    assert make(retry_policy=None).retry_policy is None
    for given in (own, None):
        with DAG("d", default_args={"retry_policy": given}):
            assert make().retry_policy is given
        with DAG("d"), TaskGroup("g", default_args={"retry_policy": given}), TaskGroup("h"):
            assert type(make().retry_policy) is type(given)  # groups copy their arguments


@pytest.mark.parametrize("make", [trial, unmapped, pytest.param(mapped, marks=since_3_3)])
@pytest.mark.parametrize("given", [Own(), None])
def test_default_args_of_a_task_are_stronger(make, given):
    assert make(default_args={"retry_policy": given}).retry_policy is given


class PlainTrial(RestoreTrialOperator):
    """A user's own: with the plain retries of Airflow by default."""

    def __init__(self, *, retry_policy=None, **arguments):
        super().__init__(retry_policy=retry_policy, **arguments)


def test_a_subclass_may_have_another_default():
    plain = PlainTrial(task_id="p", trial={}, trainable="a:b")
    mapped = PlainTrial.partial(task_id="m", trainable="a:b").expand(trial=[{}])
    assert plain.retry_policy is mapped.unmap({"trial": {}}).retry_policy is None


@since_3_3
@pytest.mark.parametrize("make", [trial, mapped])
def test_the_serialized_dag_has_the_policy(make):
    with DAG("d", schedule=None) as dag:
        task_id = make().task_id
    read = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert read.get_task(task_id).has_retry_policy
