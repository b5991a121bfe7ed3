"""Arguments that no pod can be made of are refused before anything is claimed for one."""

from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.kubernetes.continue_search import (
    ContinueSearchKubernetesOperator,
)
from airflow_tune_restore.operators.kubernetes.pod_arguments import (
    parse_grace_period,
    parse_object_store,
    parse_ttl,
)
from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.version_compat import AirflowFailException
from tests.support.airflow.context import make_context

YEAR = timedelta(days=365)
WRONG = [
    {"ttl": 0.5},
    {"ttl": 100 * YEAR},
    {"termination_grace_period": -1},
    {"object_store_memory": 0},
    {"gpu_resource": "gpu"},
    {"custom_resources": {"special": "???"}},
]


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (None, None),
        (1, 1),
        (1.001, 2),
        ("90", 90),
        (timedelta(hours=2), 7200),
        (timedelta(seconds=2, microseconds=1), 3),
        (2**31 - 1, 2**31 - 1),
    ],
)
def test_a_ttl_is_rounded_up_to_whole_seconds(ttl, seconds):
    assert parse_ttl(ttl) == seconds


@pytest.mark.parametrize("ttl", [0, 0.5, -1, 2**31, 100 * YEAR, float("nan"), "soon"])
def test_a_ttl_that_kubernetes_does_not_take_is_refused(ttl):
    with pytest.raises(InvalidInputError, match="ttl="):
        parse_ttl(ttl)


@pytest.mark.parametrize("seconds", [None, 0, 120])
def test_a_grace_period_is_a_whole_number_of_seconds_or_left_out(seconds):
    assert parse_grace_period(seconds) == seconds


@pytest.mark.parametrize("seconds", [-1, 1.5, 30.0, True, "30"])
def test_a_grace_period_that_kubernetes_does_not_take_is_refused(seconds):
    with pytest.raises(InvalidInputError, match="termination_grace_period="):
        parse_grace_period(seconds)


@pytest.mark.parametrize("amount", [0, 0.5, -1, float("inf"), float("nan"), "much", None])
def test_an_object_store_needs_bytes(amount):
    with pytest.raises(InvalidInputError, match="object_store_memory="):
        parse_object_store(amount)


def test_an_object_store_may_be_given_as_a_number_of_any_kind():
    assert parse_object_store(2.5e9) == parse_object_store("2.5e9") == 2_500_000_000


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_a_wrong_argument_ends_a_trial_before_its_storage_is_opened(wrong):
    operator = RestoreTrialKubernetesOperator(task_id="t", trial={}, trainable="a:b", **wrong)
    (argument,) = wrong
    with pytest.raises(AirflowFailException, match=f"^{argument}="):
        operator.execute({})


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_a_wrong_argument_ends_a_continuation_before_it_is_planned(wrong, errored):
    operator = ContinueSearchKubernetesOperator(
        task_id="t", experiment=str(errored), trainable="a:b", **wrong
    )
    (argument,) = wrong
    with pytest.raises(AirflowFailException, match=f"^{argument}="):
        operator.execute(make_context())
    assert not (errored / ".tune_restore").exists()


def test_arguments_that_a_pod_can_be_made_of_are_not_refused():
    RestoreTrialKubernetesOperator(
        task_id="t",
        trial={},
        trainable="a:b",
        ttl=timedelta(days=1),
        gpu_resource="amd.com/gpu",
        custom_resources={"special": "example.com/special"},
    ).check_arguments()
