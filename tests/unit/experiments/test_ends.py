"""By what the trials of a finished experiment came to their end: that is not always a good one."""

import pickle
from datetime import timedelta

import pytest
from ray import cloudpickle
from ray.tune import stopper
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, MedianStoppingRule
from ray.tune.tune_config import TuneConfig

from airflow_tune_restore.experiments.ends import count_ends
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.storage.local import LocalStore
from tests.support import GOLDEN
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import plan_night


class StopLater(stopper.Stopper):
    """A stopper of a user's own."""

    def __call__(self, trial_id, result):
        return False

    def stop_all(self):
        return False


def pickled(value) -> dict[str, str]:
    return {"_type": "CLOUDPICKLE_FALLBACK", "value": cloudpickle.dumps(value).hex()}


def returned(trial_id: str) -> list[str]:
    """Return a function's trial that returned: Ray calls its last result done, but logs no such row."""
    analysis = {"done": {"max": False, "min": False, "last": False}}
    return make_row(trial_id, last_result={"done": True}, run={"metric_analysis": analysis})


def ended_with_a_result(trial_id: str, *, is_class: bool = False, **fields) -> list[str]:
    analysis = {"done": {"max": True, "min": False, "last": True}}
    last = {"training_iteration": 4, "nested": {"loss": 0.1}, "done": True}
    if not is_class:
        last["checkpoint_dir_name"] = None
    return make_row(trial_id, last_result=last, run={"metric_analysis": analysis}, **fields)


def cut_off(trial_id: str) -> list[str]:
    return make_row(trial_id, last_result={"training_iteration": 2, "done": False})


def write_searcher(sweep, samples: int, live: list[str] | None) -> None:
    """Write the state of a BasicVariantGenerator, as its `__dict__`; None is that of another searcher."""
    state = {"_total_samples": samples, "_finished": True}
    if live is not None:
        state["_live_trials"] = set(live)
    (path,) = sweep.glob("basic-variant-state-*")
    path.write_bytes(pickle.dumps(state))


@pytest.fixture
def reason(tmp_path):
    """Return the reason that a scan gives, with these trials TERMINATED and all samples drawn."""

    def scan_one(*rows, scheduler=None, live=None, **runner) -> str:
        sweep = make_experiment(tmp_path / "sweep", list(rows), total_samples=len(rows), **runner)
        write_searcher(sweep, len(rows), live)
        if scheduler is not None:
            config = TuneConfig(metric="loss", mode="min", scheduler=scheduler)
            (sweep / "tuner.pkl").write_bytes(cloudpickle.dumps({"_tune_config": config}))
        (report,) = scan(LocalStore(tmp_path), stale_after=timedelta(0))
        assert report.health is Health.FINISHED
        return report.reason

    return scan_one


def test_trials_that_returned_ended_by_themselves(reason):
    assert reason(returned("a"), returned("b")) == "all 2 trials ended by themselves"


def test_a_scheduler_is_named(reason):
    words = reason(returned("a"), ended_with_a_result("b"), scheduler=ASHAScheduler())
    assert words == "all 2 trials ended: 1 by itself, 1 stopped by AsyncHyperBandScheduler"


def test_a_class_that_calls_itself_done_may_have_been_stopped_where_something_stops(reason):
    row = ended_with_a_result("a", is_class=True)
    assert reason(row) == "its only trial ended by itself"
    words = reason(row, scheduler=ASHAScheduler())
    assert words == "its only trial ended: 1 stopped by AsyncHyperBandScheduler or themselves"


@pytest.mark.parametrize("row", [ended_with_a_result("a"), ended_with_a_result("a", is_class=True)])
def test_without_tuner_pkl_it_is_unknown_whether_there_was_a_scheduler(tmp_path, row):
    sweep = make_experiment(tmp_path / "sweep", [row], total_samples=1)
    (sweep / "tuner.pkl").unlink()
    (report,) = scan(LocalStore(tmp_path), stale_after=timedelta(0))
    assert report.reason.startswith("its only trial ended; tuner.pkl is missing")


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (ASHAScheduler(), "its only trial ended by itself"),
        (MedianStoppingRule(), "its only trial ended by itself"),
        (HyperBandScheduler(), "its only trial ended: 1 stopped by HyperBandScheduler"),
    ],
)
def test_a_scheduler_or_stopper_that_stopped_nothing_is_not_named(reason, scheduler, words):
    """The row of a function that returned may not say so; HyperBand ends trials while they are paused."""
    assert reason(cut_off("a"), live=[], scheduler=scheduler) == words
    words = reason(cut_off("a"), live=[], _stopper=pickled(StopLater()))
    assert words == "its only trial ended by itself"


@pytest.mark.parametrize("stop", [{"training_iteration": 4}, {"nested/loss": 0.05}])
def test_a_stop_criterion_differs_from_a_scheduler(reason, stop):
    row = ended_with_a_result("a", stopping_criterion=stop)
    assert (
        reason(row, scheduler=ASHAScheduler())
        == "its only trial ended: 1 stopped by a stop criterion"
    )
    unmet = ended_with_a_result("a", stopping_criterion={"training_iteration": 9})
    assert "AsyncHyperBandScheduler" in reason(unmet, scheduler=ASHAScheduler())


def test_a_time_budget_is_named(reason):
    budget = stopper.TimeoutStopper(60)
    words = reason(returned("a"), cut_off("b"), _stopper=pickled(budget))
    assert words == "all 2 trials ended: 1 by itself, 1 stopped by time_budget_s"
    both = stopper.CombinedStopper(stopper.ExperimentPlateauStopper("loss"), budget)
    words = reason(cut_off("a"), _stopper=pickled(both))
    assert words == "its only trial ended: 1 stopped by time_budget_s or ExperimentPlateauStopper"


def test_a_stopper_is_named(reason):
    by_result = stopper.MaximumIterationStopper(4)
    words = reason(ended_with_a_result("a"), _stopper=pickled(by_result))
    assert words == "its only trial ended: 1 stopped by MaximumIterationStopper"
    assert "StopLater" in reason(cut_off("a"), _stopper=pickled(StopLater()))


def test_a_stopper_whose_class_is_pickled_with_it_has_no_name(reason):
    code = "from ray.tune import stopper\nclass Mine(stopper.Stopper):\n  def __call__(self, *_): pass\n"
    names = {"__name__": "__main__"}
    exec(code + "  def stop_all(self): pass\n", names)  # noqa: S102  as in a user's script
    words = reason(cut_off("a"), _stopper=pickled(names["Mine"]()))
    assert words == "its only trial ended: 1 stopped by a stopper"


def test_fail_fast_is_named_and_after_a_restore_nothing_is_claimed(reason):
    words = reason(cut_off("a"), _fail_fast=True, _has_errored=True)
    assert "1 stopped by fail_fast" in words
    assert reason(cut_off("a"), _resumed=True) == "its only trial ended"


BUDGET = {"_stopper": pickled(stopper.TimeoutStopper(60))}


@pytest.mark.parametrize(
    ("live", "state", "words"),
    [
        ([], {}, "all 2 trials ended by themselves"),
        ([], BUDGET, "all 2 trials ended by themselves"),
        (["b"], BUDGET, "all 2 trials ended: 1 by itself, 1 stopped by time_budget_s"),
        (["b"], {}, "all 2 trials ended"),
        (None, {}, "all 2 trials ended by themselves"),
        (None, BUDGET, "all 2 trials ended: 2 stopped by time_budget_s"),
    ],
)
def test_a_row_may_be_older_than_the_end_of_its_trial(reason, live, state, words):
    """The searcher has the ends of all trials that were not stopped at once."""
    assert reason(cut_off("a"), cut_off("b"), live=live, **state) == words


@pytest.mark.parametrize(
    ("live", "cut_short"), [([], []), (["a"], ["a"]), (["a", "b"], ["a", "b"])]
)
def test_what_returned_before_another_failed_was_not_cut_short(tmp_path, live, cut_short):
    rows = [cut_off("a"), cut_off("b"), make_row("bad", status="ERROR")]
    sweep = make_experiment(tmp_path, rows, total_samples=3, _fail_fast=True, _has_errored=True)
    write_searcher(sweep, 3, live)
    experiment = read_experiment(LocalStore(sweep))
    assert [trial.trial_id for trial in experiment.stopped_by_fail_fast] == cut_short
    marked = f"fail_fast marked {counted(len(cut_short), 'trial')} TERMINATED too early: "
    assert any(marked in warning for warning in experiment.warnings) == bool(cut_short)


@pytest.mark.parametrize(
    ("kind", "ended_by"),
    [
        ("asha", {"AsyncHyperBandScheduler": 3}),
        ("hyperband", {"HyperBandScheduler or themselves": 3}),  # a class
        ("median", {"itself": 2, "MedianStoppingRule": 1}),
        ("errored", {"itself": 1}),
    ],
)
def test_what_ended_the_trials_of_real_experiments(kind, ended_by):
    experiment = read_experiment(LocalStore(GOLDEN / "failed" / kind))
    assert count_ends(experiment) == ended_by


@pytest.mark.parametrize(("seconds_spent", "is_spent"), [(0, False), (59, False), (60, True)])
def test_a_plan_notes_that_a_time_budget_is_spent(tmp_path, seconds_spent, is_spent):
    budget = stopper.TimeoutStopper(60)
    budget._budget -= seconds_spent
    both = stopper.CombinedStopper(budget, stopper.NoopStopper())
    for number, one in enumerate((budget, both)):
        rows = [make_row("bad", status="ERROR")]
        sweep = make_experiment(tmp_path / str(number), rows, _stopper=pickled(one))
        plan = plan_night(LocalStore(sweep), "r1")
        notes = [
            note for note in plan.warnings if note.startswith("time_budget_s of the experiment")
        ]
        assert len(notes) == is_spent
