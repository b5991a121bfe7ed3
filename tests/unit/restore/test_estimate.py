"""How far trials run and how long it takes: from the state alone, and never more than it shows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.estimate import Course, Hours, estimate, total
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import TrialPlan
from airflow_tune_restore.restore.prepare import plan_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row

HOUR = 3600.0
ALL = PlanChoices(
    flags=ResumeFlags.from_flags(resume_errored=True, resume_unfinished=True, restart_errored=False)
)


def prepared(directory, rows, **options):
    store = open_store(str(make_experiment(directory, rows, **options)))
    return plan_restore(store, "r", PrepareOptions(choices=ALL, reads_course=True))


def efforts(restore):
    return estimate(restore.plan, restore.course, samples=restore.samples_to_draw)


def errored(trial_id="a", *, stop=None, **last):
    row = {"stopping_criterion": {"training_iteration": stop}} if stop is not None else {}
    return make_row(trial_id, status="ERROR", last_result=last, **row)


def finished(trial_id, iteration, **last):
    return make_row(trial_id, last_result={"training_iteration": iteration, "done": True, **last})


def test_a_trial_runs_to_its_own_criterion_at_its_own_pace(tmp_path):
    rows = [errored(stop=10, training_iteration=4, time_total_s=4 * HOUR), finished("b", 99)]
    found = efforts(prepared(tmp_path / "e", rows)).trials["a"]
    assert (found.start, found.end) == (0, 10)  # it has no checkpoint: it starts over
    assert found.hours == Hours(cpu=10.0)  # one CPU each


def test_without_a_criterion_it_runs_as_far_as_those_that_finished(tmp_path):
    rows = [errored(), finished("b", 6), finished("c", 8), make_row("d", status="ERROR")]
    found = efforts(prepared(tmp_path / "e", rows)).trials["a"]
    assert found.end == 8
    assert found.hours == Hours(unknown=1)  # no trial has a recorded time


def test_without_a_pace_of_its_own_it_takes_the_median_of_the_others(tmp_path):
    rows = [
        errored(stop=1),
        *(finished(f"b{n}", 1, time_this_iter_s=n * HOUR) for n in (1, 2, 9)),
    ]  # fmt: skip
    assert efforts(prepared(tmp_path / "e", rows)).trials["a"].hours == Hours(cpu=2.0)


def test_what_is_unknown_stays_unknown(tmp_path):
    found = efforts(prepared(tmp_path / "e", [errored(training_iteration=3, time_total_s=9)]))
    assert found.trials["a"].end is None
    assert found.hours == Hours(unknown=1)


def test_samples_that_were_never_drawn_are_a_line_of_their_own(tmp_path):
    rows = [errored(stop=2, training_iteration=1, time_total_s=HOUR)]
    found = efforts(prepared(tmp_path / "e", rows, total_samples=4))
    assert found.sample_count == 3
    assert found.samples.end == 2
    assert found.samples.hours == Hours(cpu=6.0)
    assert found.hours == Hours(cpu=8.0)


def test_samples_are_left_out_where_only_some_trials_are_restored(tmp_path):
    store = open_store(
        str(make_experiment(tmp_path / "e", [errored("a"), errored("b")], total_samples=9))
    )
    options = PrepareOptions(choices=PlanChoices(flags=ALL.flags, trials=("a",)), reads_course=True)
    assert plan_restore(store, "r", options).samples_to_draw == 0


def test_nothing_is_read_of_it_unless_a_page_needs_it(tmp_path):
    store = open_store(str(make_experiment(tmp_path / "e", [errored(stop=3)])))
    assert plan_restore(store, "r", PrepareOptions(choices=ALL)).course == Course()
    assert read_experiment(store).trials[0].row is not None


@pytest.mark.parametrize("stop", [math.inf, math.nan, -1, "10", None, [1], 10**400, {}])
def test_an_odd_criterion_counts_as_none(tmp_path, stop):
    row = make_row("a", status="ERROR", stopping_criterion={"training_iteration": stop})
    restore = prepared(tmp_path / "e", [row])
    assert efforts(restore).trials["a"].end is None


amounts = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**53)


@st.composite
def plans(draw):
    """Trials of a plan with any resources, and a course with any numbers."""
    ids = draw(st.lists(st.text("abc", min_size=1), max_size=5, unique=True))
    resources = st.dictionaries(st.sampled_from(["CPU", "GPU", "memory"]), amounts)
    trials = [
        TrialPlan(
            trial_id=trial_id, status=TrialStatus.ERROR, trial_dir=None, action=TrialAction.RESUME,
            checkpoint=None, iteration=draw(counts), reason="", resources=draw(resources),
        )
        for trial_id in ids
    ]  # fmt: skip
    some = st.sampled_from(ids) if ids else st.nothing()
    course = Course(
        ends=draw(st.dictionaries(some, counts)),
        seconds=draw(st.dictionaries(some, amounts)),
        usual_end=draw(st.none() | counts),
        usual_seconds=draw(st.none() | amounts),
        sample_end=draw(st.none() | counts),
        sample_resources=draw(resources),
    )

    class Plan:
        to_run = trials

    return Plan, course, draw(st.none() | st.integers(0, 10**6))


@given(plans())
def test_no_amount_is_negative_or_infinite_and_sums_add_up(drawn):
    plan, course, samples = drawn
    found = estimate(plan, course, samples=samples)
    parts = [*found.trials.values(), *([found.samples] if found.samples else [])]
    for each in parts:
        assert 0 <= each.hours.gpu < math.inf
        assert 0 <= each.hours.cpu < math.inf
        assert each.hours.unknown >= 0
    assert found.hours == total(each.hours for each in parts)
    assert found.hours.gpu == pytest.approx(math.fsum(each.hours.gpu for each in parts))
    assert set(found.trials) == {trial.trial_id for trial in plan.to_run}
    assert (found.samples is None) == (samples == 0)
