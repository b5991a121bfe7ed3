"""What a searcher refuses to be told is left out, and keeps nobody from drawing."""

import copy
import logging
import math
import pickle
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.tune")

from ray import tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, SearchGenerator

from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.tune.searcher import (
    Shield,
    innermost,
    report_missed_results,
    shield,
)
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.experiments.searchers import Refusing, hyperopt, optuna

SPACE = {"a": tune.uniform(0, 9)}
SESSION = STATE_NAME.removeprefix("experiment_state-").removesuffix(".json")


def told(searcher, results):
    """Let a limiter of one draw for each result in turn, and tell it; return the shielded generator."""
    limiter = ConcurrencyLimiter(searcher, max_concurrent=1)
    generator = shield(SearchGenerator(limiter))
    for number, loss in enumerate(results):
        trial_id = f"t{number}"
        assert limiter.suggest(trial_id) is not None, f"nothing is suggested after {number} trials"
        result = {"loss": loss, "training_iteration": 1}
        generator.on_trial_result(trial_id, result)
        generator.on_trial_complete(trial_id, result=result)
    return generator


@pytest.mark.parametrize("make", [optuna, hyperopt])
def test_nan_and_infinity_are_told_as_failures_and_the_next_is_drawn(make):
    searcher = make(SPACE)
    generator = told(searcher, [1.0, math.nan, math.inf, -math.inf, 2.0, 3.0])
    assert innermost(generator).left_out == {"t1", "t2", "t3"}
    assert known(searcher) == [1.0, 2.0, 3.0]


def known(searcher) -> list[float]:
    """Return what the searcher has learned."""
    if hasattr(searcher, "_ot_study"):
        assert all(trial.state.is_finished() for trial in searcher._ot_study.trials)
        return [t.value for t in searcher._ot_study.trials if t.state.name == "COMPLETE"]
    return [t["result"]["loss"] for t in searcher._hpopt_trials.trials if t["state"] == 2]


@pytest.mark.parametrize("refuses", ["nan", "results", "ends", "everything"])
def test_what_a_searcher_raises_is_a_warning_and_nobody_waits_for_that_trial(refuses, caplog):
    searcher = Refusing(refuses)
    generator = told(searcher, [1.0, math.nan, 3.0, 4.0])
    refused = {"nan": {"t1"}}.get(refuses, {"t0", "t1", "t2", "t3"})
    assert innermost(generator).left_out == refused
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == len(refused)  # once a trial, however often it is refused
    for trial_id, warning in zip(sorted(refused), warnings, strict=True):
        assert warning.startswith(f"Refusing does not learn from trial {trial_id} and")
        assert ("loss is nan" if trial_id == "t1" else "ValueError: I refuse") in warning


def test_a_refused_end_is_told_once_more_as_a_failure():
    searcher = Refusing("ends")
    told(searcher, [1.0])
    assert searcher.ends == [
        ("t0", {"loss": 1.0, "training_iteration": 1}, False),
        ("t0", None, True),
    ]


def test_repeats_are_averaged_without_the_refused_ones():
    repeater = Repeater(ConcurrencyLimiter(Refusing("everything"), max_concurrent=1), repeat=2)
    generator = shield(SearchGenerator(repeater))
    for number in range(6):
        assert repeater.suggest(f"t{number}") is not None
        if number % 2:
            for trial_id in (f"t{number - 1}", f"t{number}"):
                generator.on_trial_complete(trial_id, result={"loss": 1.0})


def test_what_suggest_raises_is_raised():
    shielded = Shield(Refusing("suggestions"))
    with pytest.raises(ValueError, match="I refuse"):
        shielded.suggest("t0")


def test_a_shield_is_saved_as_what_it_stands_around_and_stands_there_once(tmp_path):
    searcher = Refusing("nan")
    generator = SearchGenerator(searcher)
    assert shield(shield(generator)) is generator
    assert generator.searcher._searcher is searcher
    assert b"airflow_tune_restore" not in pickle.dumps(generator.searcher)
    assert type(copy.deepcopy(generator.searcher)) is Refusing
    generator.save_to_dir(str(tmp_path), "2026-11-23_10-00-00")
    assert len(list(tmp_path.glob("searcher-state-*"))) == 1


def test_rays_own_searcher_refuses_nothing():
    own = BasicVariantGenerator()
    assert shield(own) is own


def catch_up_with(tmp_path, generator, trials):
    """Tell what became of trials that stood as RUNNING, ERROR and nowhere in the saved session."""
    store = open_store(str(tmp_path))
    rows = [make_row("ran", status="RUNNING"), make_row("failed", status="ERROR")]
    store.put(STATE_NAME, make_state(rows))
    store.put(f"search_gen_state-{SESSION}.json", b"")
    part = RunnerRequest(
        experiment="", restore_id="", trial_id="", attempt=1, trainable="", trainable_name="",
        action="keep",
    )  # fmt: skip
    report_missed_results(store, generator, trials, lambda _trial: part)


def ended(trial_id, loss, **params):
    return SimpleNamespace(
        trial_id=trial_id, status="TERMINATED", evaluated_params=params,
        last_result={"loss": loss, "training_iteration": 1},
    )  # fmt: skip


def test_points_outside_of_the_space_are_left_out_of_what_was_missed(tmp_path, caplog):
    searcher = optuna(SPACE)
    generator = shield(SearchGenerator(searcher))
    searcher.suggest("ran")
    trials = [ended("ran", 1.0), ended("failed", 2.0, a=99.0), ended("new", 3.0, b="what")]
    trials += [ended("nan", math.nan, a=1.0), ended("known", 4.0, a=1.0)]
    caplog.set_level(logging.INFO)
    catch_up_with(tmp_path, generator, trials)
    assert known(searcher) == [1.0, 4.0]
    assert innermost(generator).left_out == {"failed", "new", "nan"}
    assert "got the results of 2 trials" in caplog.text


def test_a_searcher_that_takes_no_points_is_told_the_others(tmp_path, caplog):
    searcher = Refusing("nothing")
    generator = shield(SearchGenerator(searcher))
    catch_up_with(tmp_path, generator, [ended("ran", 1.0), ended("failed", 2.0, a=1.0)])
    assert [trial_id for trial_id, *_ in searcher.ends] == ["ran"]
    assert "Refusing does not learn from trial failed" in caplog.text
