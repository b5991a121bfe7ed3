"""Trials that share a driver have stoppers that see nobody else."""

from ray import cloudpickle
from ray.tune.stopper import MaximumIterationStopper, NoopStopper, Stopper

from airflow_tune_restore.runner.tune.own_stoppers import OwnStoppers


class EndsAll(Stopper):
    """Ends the experiment as soon as one trial is good."""

    def __init__(self):
        self.best = 0

    def __call__(self, trial_id, result):
        self.best = max(self.best, result["score"])
        return False

    def stop_all(self):
        return self.best >= 3


def test_who_would_end_the_experiment_ends_the_trial_that_it_sees():
    stoppers = OwnStoppers(EndsAll())
    for score in (1, 2, 3):
        assert not stoppers("good", {"score": score})
        assert not stoppers("poor", {"score": 1})
    assert stoppers.stops("good")
    assert not stoppers.stops("poor")
    assert not stoppers.stops("new")
    assert not stoppers.stop_all()


def test_what_the_stopper_knew_of_earlier_runs_it_still_knows():
    original = MaximumIterationStopper(3)
    assert not original("a", {})
    stoppers = OwnStoppers(original)
    assert [stoppers("a", {}), stoppers("b", {}), stoppers("a", {})] == [False, False, True]
    assert original("a", {}) is False  # the copies are copies
    stoppers.forget("a")
    assert stoppers("a", {}) is False


def test_a_copy_is_saved_as_the_stopper_of_the_user():
    stoppers = OwnStoppers(NoopStopper())
    assert not stoppers.stops("a")
    assert type(cloudpickle.loads(cloudpickle.dumps(stoppers.of("a")))) is NoopStopper
