"""No XCom is larger than 256 KiB, however many experiments and trials there are."""

import hashlib
import json
import random
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_tune_restore.exceptions import InvalidInputError, StorageError
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import MAX_XCOM_BYTES, unpack
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.operators.trial_items import build_items, find_trial
from airflow_tune_restore.operators.xcom import OutcomeXCom, TrialXCom
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.version_compat import AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.airflow.states import plan, run
from tests.support.experiments.built import make_experiment, make_row

PREFIX = "s3://team_a_aws@company-ml/experiments/production/recommendation/ranking-models"


def size_of(value: Any) -> int:
    return len(json.dumps(value))


def addresses(count: int) -> list[str]:
    """Return addresses of 200 characters, as different as those of real sweeps."""
    draw = random.Random(1)  # the same ones in every run
    names = (
        f"sweep_{number:05}_{draw.getrandbits(32):08x}_2026-11-28_06-{number % 60:02}-45"
        for number in range(count)
    )
    return [f"{PREFIX}/{name}".ljust(200, "x") for name in names]


def restore_id(address: str) -> str:
    return f"airflow-{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def a_batch(count: int) -> ExperimentBatch:
    return ExperimentBatch(map(Address.parse, addresses(count)))


def read(outcomes: Any) -> OutcomeList:
    """Return the outcomes as the tasks behind the plan read them from Airflow's database."""
    return OutcomeList.resolve(json.loads(json.dumps(outcomes)), make_context())


@pytest.mark.parametrize("count", [3, 2000, 5000])
def test_the_outcomes_of_thousands_of_restores_fit_and_none_is_lost(count):
    batch = a_batch(count)
    for address in batch.places:
        batch.take(address, restore_id(address), by_name=True)
    outcomes = batch.to_xcom()
    assert size_of(outcomes) < MAX_XCOM_BYTES
    found = read(outcomes)
    assert {(item.experiment, item.restore_id) for item in found.items} == {
        (address, restore_id(address)) for address in batch.places
    }
    assert all(item.by_name for item in found.items)
    assert not found.not_listed


def test_a_few_outcomes_are_the_list_that_they_always_were():
    batch = a_batch(2)
    first, second = batch.places
    batch.leave_alone(first, "it is running")
    batch.take(second, "r")
    assert batch.to_xcom() == [
        {"experiment": first, "outcome": "left_alone", "restore_id": None,
         "reason": "it is running", "by_name": False, "waiting": 0, "rest": 0},
        {"experiment": second, "outcome": "restored", "restore_id": "r", "reason": "",
         "by_name": False, "waiting": 0, "rest": 0},
    ]  # fmt: skip


def test_of_many_outcomes_those_that_are_worked_on_are_listed_and_the_others_counted():
    """Those left alone have other holders each, so their reasons are not the same."""
    batch = a_batch(20_000)
    texts = list(batch.places)
    for number, address in enumerate(texts):
        if number % 10 == 0:
            batch.take(address, restore_id(address))
        elif number % 10 == 1:
            batch.continue_search(address)
        else:
            batch.leave_alone(address, f"another restore, {restore_id(address)}, is restoring it")
    batch.refuse(texts[2], StorageError("no answer"))
    outcomes = batch.to_xcom()
    assert size_of(outcomes) < MAX_XCOM_BYTES
    found = read(outcomes)
    words = [str(item.outcome) for item in found.items]
    assert (words.count("restored"), words.count("continue_search")) == (2000, 2000)
    assert words[4000] == "refused"
    assert words.count("left_alone") + found.not_listed["left_alone"] == 15_999
    assert found.not_listed["left_alone"]


def test_experiments_that_are_refused_fail_the_last_task_even_if_they_are_not_listed(monkeypatch):
    batch = a_batch(30)
    for address in batch.places:
        batch.refuse(address, StorageError(f"no answer of {restore_id(address)}"))
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 900)
    outcomes = batch.to_xcom()
    assert 0 < len(read(outcomes).items) < 30
    done = CheckRestoresOperator(task_id="done", outcomes=outcomes)
    with pytest.raises(AirflowFailException, match="a person is needed: 30 experiments"):
        done.execute(make_context())


def test_reasons_of_restores_that_could_not_go_on_are_left_to_the_log_if_they_do_not_fit(
    monkeypatch,
):
    batch = ExperimentBatch(
        [Address(f"/x/{number}") for number in range(50)], find_started=lambda _: "r"
    )
    for address in batch.places:
        reason = hashlib.sha256(address.encode()).hexdigest()
        batch.refuse(address, StorageError(reason))
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 2000)
    outcomes = batch.to_xcom()
    assert size_of(outcomes) < 2000
    assert {item.reason for item in read(outcomes).items} == {
        "the log of the plan task has the reason"
    }
    assert all(item.is_refused for item in read(outcomes).items)


@pytest.mark.parametrize("counts", [{"restored": "x"}, {"no_outcome": 1}, [3], "x"])
def test_counts_that_are_none_are_refused_in_words(counts):
    with pytest.raises(InvalidInputError, match="counts no outcomes"):
        read({"packed": xcom_size.pack([])["packed"], "not_listed": counts})


# the trials of a plan


def items_of(experiments: list[str], trials: int) -> list[TrialXCom]:
    return [
        TrialXCom(
            experiment=address,
            restore_id=restore_id(address),
            trial_id=f"{number:05x}_{trial:05}",
            label=f"sweep {trial}",
        )
        for number, address in enumerate(experiments)
        for trial in range(trials)
    ]


@pytest.mark.parametrize(("experiments", "trials"), [(5000, 2), (1, 10_000), (1000, 5)])
def test_thousands_of_trials_fit_and_each_is_found_again(experiments, trials):
    batch = a_batch(experiments)
    for address in batch.places:
        batch.take(address, restore_id(address))
    outcomes = batch.to_xcom()
    wanted = items_of(list(batch.places), trials)
    references = build_items(wanted, outcomes)
    assert size_of(references) < MAX_XCOM_BYTES
    assert len(references) == experiments * trials
    found = read(outcomes)
    for place in (0, len(wanted) // 2, -1):
        trial = find_trial(references[place], found)
        assert (trial.experiment, trial.restore_id, trial.trial_id) == (
            wanted[place].experiment, wanted[place].restore_id, wanted[place].trial_id,
        )  # fmt: skip


def test_a_few_trials_are_whole_items():
    items = items_of(addresses(2), 2)
    assert build_items(items, []) == [item.to_xcom() for item in items]


@pytest.fixture
def references(tmp_path, monkeypatch):
    """Two experiments whose items do not fit: what the plan returns, and its outcomes."""
    experiments = [
        make_experiment(tmp_path / name, [make_row(f"{name}_1", status="ERROR")])
        for name in ("one", "two")
    ]
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 400)
    _, items, pushed = run(plan(experiments, trainable=None))
    return items, pushed["outcomes"]


def render(task: Any, outcomes: Any) -> None:
    """Render the templates of a task as Airflow does for one that was mapped."""
    context = {
        **make_context(map_index=1),
        "task": task,
    }
    context["ti"].xcom_pull = lambda **asked: outcomes
    task._do_render_template_fields(task, ["trial"], context, task.get_template_env(), set())


KINDS = [(RestoreTrialOperator, {}), (RestoreTrialKubernetesOperator, {"image": "i"})]


@pytest.mark.parametrize(("kind", "arguments"), KINDS)
def test_a_task_finds_its_trial_behind_a_reference(references, tmp_path, kind, arguments):
    items, outcomes = references
    assert items == ["0:one_1", "1:two_1"]
    with DAG("d", schedule=None):
        planning = BuildRestorePlanOperator(task_id="plan", experiments=[])
        task = kind(task_id="trial", trial=items[1], trainable="m:train", **arguments)
        planning >> task
    render(task, outcomes)
    assert task.trial["experiment"] == str(tmp_path / "two")
    assert task.trial["restore_id"] == unpack(outcomes)[1]["restore_id"]
    assert (task.trial["trial_id"], task.trial["label"]) == ("two_1", "two two_1")


def test_a_whole_item_needs_no_plan_upstream(item):
    with DAG("d", schedule=None):
        task = RestoreTrialOperator(task_id="trial", trial=item, trainable="m:train")
    render(task, None)
    assert task.trial == item


@pytest.mark.parametrize("plans", [0, 2])
def test_a_reference_without_its_plan_fails_at_once_and_names_what_to_do(references, plans):
    with DAG("d", schedule=None):
        task = RestoreTrialOperator(task_id="trial", trial="0:one_1", trainable="m:train")
        for number in range(plans):
            BuildRestorePlanOperator(task_id=f"plan{number}", experiments=[]) >> task
    with pytest.raises(AirflowFailException, match=rf"{plans} are\. Expand over plan\.output"):
        render(task, references[1])


@pytest.mark.parametrize("outcomes", [None, [], [{"experiment": "/x", "outcome": "misfit"}]])
def test_a_reference_to_what_was_not_started_fails_at_once(outcomes):
    with DAG("d", schedule=None):
        task = RestoreTrialOperator(task_id="trial", trial="0:one_1", trainable="m:train")
        BuildRestorePlanOperator(task_id="plan", experiments=[]) >> task
    with pytest.raises(AirflowFailException, match="Clear the task of the plan"):
        render(task, outcomes)


@pytest.mark.parametrize(("rest", "label"), [(0, "new samples"), (45, "45 other trials")])
def test_the_samples_to_draw_and_the_trials_without_a_task_have_their_label(rest, label):
    outcomes = read([{"experiment": "s3://c@b/x/sweep", "restore_id": "r", "rest": rest}])
    assert find_trial(f"0:{WHOLE_EXPERIMENT}", outcomes).label == f"sweep {label}"


def test_an_item_is_not_changed_by_its_short_form():
    item = OutcomeXCom(experiment="/x", restore_id="r", by_name=True)
    assert item.to_short_xcom() == {"experiment": "/x", "restore_id": "r", "by_name": True}
    assert OutcomeXCom.parse(item.to_short_xcom()) == item
