"""What one DAG run takes of many experiments: it never maps too many trials, and always takes some."""

import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import StateChangedError
from airflow_tune_restore.experiments.experiment import StateFile
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.xcom_size import MAX_XCOM_BYTES
from airflow_tune_restore.operators.dag_run_room import take_what_fits
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.outcome_list import OutcomeList
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.choices import PlanChoices, Strategy
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.version_compat import AirflowSkipException
from tests.support.airflow.context import make_context

PREFIX = "s3://team_a_aws@company-ml/experiments/production/recommendation/ranking-models"

DAY = datetime(2026, 11, 1, tzinfo=UTC)
LIMIT = "[core] max_map_length"


def addresses(count):
    """Return addresses of 200 characters, as different as those of real sweeps."""
    draw = random.Random(1)  # the same ones in every run
    names = (f"sweep_{number:05}_{draw.getrandbits(32):08x}" for number in range(count))
    return [f"{PREFIX}/{name}".ljust(200, "x") for name in names]


def size_of(value):
    return len(json.dumps(value))


def make(trials, *, coupled=False, samples=0, age=0, **more):
    """Return a prepared restore of an experiment that is dead for so many days."""
    plan = RestorePlan(
        restore_id="r",
        experiment="/x",
        base=StateFile(name="experiment_state-2026-11-23_10-00-00.json", sha256="", size_bytes=1),
        trainable_name="train",
        choices=PlanChoices(),
        strategy=Strategy.WHOLE_EXPERIMENT if coupled else Strategy.PER_TRIAL,
        strategy_reason="",
        samples_left=samples,
        continues_search=bool(samples) and (coupled or not trials),
        metric=None,
        mode=None,
        trials=tuple(
            TrialPlan(
                trial_id=f"t{number:05}",
                status=TrialStatus.ERROR,
                trial_dir=None,
                action=TrialAction.RESUME,
                checkpoint=None,
                iteration=0,
                reason="",
                resources={},
            )
            for number in range(trials)
        ),
    )
    last_write = DAY - timedelta(days=age)
    return PreparedRestore(store=MemoryStore(), plan=plan, last_write=last_write, **more)


@pytest.fixture(autouse=True)
def map_length(monkeypatch):
    """Return a function that sets how many tasks Airflow maps."""

    def set_to(number):
        monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", str(number))

    set_to(10)
    return set_to


def take(restores, max_trials=None):
    """Return the number of tasks of each restore that is taken, in order, and why the others wait."""
    texts = [f"/x/{number}" for number in range(len(restores))]
    batch = ExperimentBatch(map(Address, texts))
    taken = take_what_fits(batch, dict(zip(texts, restores, strict=True)), max_trials)
    tasks = {int(text[3:]): each.plan.task_count for text, each in taken.items()}
    items = OutcomeList.resolve(batch.to_xcom(), make_context()).items
    assert all(item.outcome == "waiting" for item in items)
    return tasks, {int(item.experiment[3:]): (item.waiting, item.reason) for item in items}


def test_what_fits_is_taken_whole_and_nothing_waits():
    assert take([make(4), make(6)]) == ({0: 4, 1: 6}, {})


def test_the_longest_dead_come_first_then_a_part_of_the_first_that_did_not_fit():
    restores = [make(4, age=1), make(9, age=2), make(5, age=3)]
    tasks, waiting = take(restores)
    assert tasks == {2: 5, 0: 4, 1: 1}
    assert waiting == {}


def test_the_others_wait_with_the_limit_as_the_reason():
    tasks, waiting = take([make(40, age=1), make(10, age=9)])
    assert tasks == {1: 10}
    reason = "waits for the next DAG run: 40 trials to run, and this one takes 10 ([core] max_map_length)"
    assert waiting == {0: (40, reason)}


@pytest.mark.parametrize(("max_trials", "limit"), [(3, "3 (max_trials)"), (99, f"10 ({LIMIT})")])
def test_max_trials_counts_if_it_is_less_than_airflow_maps(max_trials, limit):
    tasks, waiting = take([make(20, age=2), make(11, age=1)], max_trials)
    assert sum(tasks.values()) == min(max_trials, 10)
    assert waiting[1][1].endswith(f"this one takes {limit}")


def test_small_ones_do_not_keep_out_a_large_one_that_is_dead_for_longer():
    """They may fail again each night, and be the first to fit each night."""
    small = [make(2, age=1) for _ in range(5)]
    tasks, waiting = take([make(500, age=9), *small])
    assert tasks == {1: 2, 2: 2, 3: 2, 4: 2, 0: 2}
    assert list(waiting) == [5]
    tasks, waiting = take([make(500, age=0), *small])
    assert (sum(tasks.values()), list(waiting)) == (10, [0])


def test_one_whose_age_is_unknown_comes_first():
    tasks, _ = take([make(9, age=5), replace(make(9), last_write=None)])
    assert list(tasks) == [1, 0]


def test_a_restore_of_an_earlier_try_is_never_put_off():
    tasks, waiting = take([make(3, age=9), make(25, is_started=True)])
    assert (tasks, list(waiting)) == ({1: 25}, [0])


@pytest.mark.parametrize(("trials", "tasks"), [(9, {0: 9}), (10, {0: 10}), (45, {0: 10})])
def test_a_coupled_experiment_is_always_whole(trials, tasks):
    assert take([make(trials, coupled=True)]) == (tasks, {})


def test_a_coupled_experiment_fits_into_one_place():
    tasks, waiting = take([make(9, age=3), make(45, coupled=True, age=2), make(1, age=1)])
    assert tasks == {0: 9, 1: 1}
    assert list(waiting) == [2]


def test_samples_to_draw_have_a_place_only_in_the_run_of_their_trials():
    assert take([make(0, samples=3), make(9, coupled=True, samples=3)])[0] == {0: 1, 1: 10}
    assert take([make(0, samples=3), make(10)])[0] == {0: 1, 1: 10}


def test_what_only_settles_may_find_a_trial_to_run_and_has_a_place():
    tasks, waiting = take([make(10, age=9), make(0, nothing_to_do="all ended")])
    assert (tasks, waiting[1][1]) == (
        {0: 10},
        f"waits for the next DAG run: this one takes 10 ({LIMIT})",
    )


def test_a_plan_that_is_made_again_when_it_starts_keeps_to_its_places():
    batch = ExperimentBatch([Address("/x/0"), Address("/x/1")])
    given = {"/x/0": make(7, age=2), "/x/1": make(7, age=1)}
    taken = take_what_fits(batch, given)
    assert [each.options.most_tasks for each in taken.values()] == [7, 3]


def test_no_more_experiments_are_taken_than_the_search_can_be_mapped_over():
    tasks, waiting = take([make(0, samples=1) for _ in range(12)])
    assert len(tasks) == 10
    assert {reason for _, reason in waiting.values()} == {
        f"waits for the next DAG run: this one takes no more experiments ({LIMIT})"
    }


def waiting_trials(outcomes):
    """Return how many trials wait, of the experiments that are listed and of the others."""
    return sum(item.waiting for item in outcomes.items) + outcomes.unlisted_trials


def test_searches_that_do_not_fit_into_the_xcom_wait(map_length):
    map_length(1_000_000)
    batch = ExperimentBatch(map(Address.parse, addresses(2000)))
    left = take_what_fits(batch, {text: make(1, samples=1) for text in batch.places})
    assert size_of(list(left)) < MAX_XCOM_BYTES < size_of([*left, "x" * 250])
    waiting = OutcomeList.resolve(batch.to_xcom(), make_context())
    assert waiting_trials(waiting) == 2000 - len(left)
    assert "have no room for it" in waiting.items[0].reason


def test_as_many_experiments_are_taken_as_outcomes_fit(map_length):
    map_length(1_000_000)
    batch = ExperimentBatch(map(Address.parse, addresses(10_000)))
    given = {}
    for number, text in enumerate(batch.places):
        restore = make(1)
        digits = f"airflow-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        last_write = DAY + timedelta(seconds=number)
        plan = replace(restore.plan, restore_id=digits)
        given[text] = replace(restore, plan=plan, last_write=last_write)
    left = take_what_fits(batch, given)
    assert 5000 < len(left) < 10_000
    for text, each in left.items():
        batch.take(text, each.plan.restore_id)
    outcomes = batch.to_xcom()
    assert size_of(outcomes) < MAX_XCOM_BYTES
    found = OutcomeList.resolve(json.loads(json.dumps(outcomes)), make_context())
    assert waiting_trials(found) == 10_000 - len(left)
    assert len(found.items) + found.not_listed.total() == 10_000


def test_one_is_taken_however_small_the_xcoms_are(monkeypatch):
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 60)
    assert take([make(2), make(2)])[0] == {0: 2}


def test_the_mapped_list_itself_may_be_larger_than_other_xcoms(map_length):
    map_length(100_000)
    assert take([make(50_000)])[0] == {0: 50_000}


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.integers(0, 2)), min_size=1),
    room=st.integers(1, 40),
)
@settings(max_examples=200, deadline=None)
def test_never_more_than_the_room_and_at_least_one(sizes, room):
    restores = [
        make(trials, coupled=coupled, samples=samples, age=number)
        for number, (trials, coupled, samples) in enumerate(sizes)
    ]
    texts = [f"/x/{number}" for number in range(len(restores))]
    batch = ExperimentBatch(map(Address, texts))
    given = dict(zip(texts, restores, strict=True))
    taken = take_what_fits(batch, given, room)
    mapped = sum(
        each.plan.task_count for each in taken.values() if not each.plan.only_continues_search
    )
    assert mapped <= min(room, 10)
    assert taken
    items = OutcomeList.resolve(batch.to_xcom(), make_context()).items
    assert sorted([*taken, *(item.experiment for item in items)]) == sorted(texts)
    # no trial is forgotten
    runs = sum(len(each.plan.to_run) + each.plan.waiting for each in taken.values())
    assert runs + sum(item.waiting for item in items) == sum(len(r.plan.to_run) for r in restores)


def test_a_plan_task_whose_experiments_wait_is_skipped_if_none_could_be_started():
    batch = ExperimentBatch([Address("/x/0"), Address("/x/1")])
    batch.wait("/x/0", "waits for the next DAG run", trials=3)
    batch.refuse("/x/1", StateChangedError("/x/1", "a", "b"))
    with pytest.raises(AirflowSkipException, match="waits for the next DAG run"):
        batch.stop_without_work(has_tries=True)


def test_finished_trials_that_run_again_come_last_and_do_not_wait():
    """They would be chosen by every DAG run, and a row of DAG runs that start each other never end."""
    again, failed = make(8, age=9), make(8, age=1)
    flags = ResumeFlags.parse({"errored": "resume", "finished": "resume"})
    plan = replace(
        again.plan,
        choices=PlanChoices(flags=flags),
        trials=tuple(
            msgspec.structs.replace(trial, status=TrialStatus.TERMINATED)
            for trial in again.plan.trials
        ),
    )
    texts = ["/x/again", "/x/failed", "/x/more"]
    batch = ExperimentBatch(map(Address, texts))
    restores = [replace(again, plan=plan), failed, make(2, age=0)]
    taken = take_what_fits(batch, dict(zip(texts, restores, strict=True)))
    assert list(taken) == ["/x/failed", "/x/more"]
    (item,) = OutcomeList.resolve(batch.to_xcom(), make_context()).items
    assert (item.experiment, item.outcome, item.waiting) == ("/x/again", "left_alone", 0)
    assert "no room for its finished trials: 8 trials to run" in item.reason
