"""A searcher that the user names takes on the state of the lost one, or is refused in a sentence."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("ray.tune")

from ray import tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, SearchGenerator

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.given import load_search_alg
from airflow_tune_restore.runner.loading import load
from airflow_tune_restore.runner.tune.saved_searcher import check, fit
from airflow_tune_restore.runner.tune.searcher import innermost, wrappers
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT
from tests.support.experiments.searchers import Refusing, hyperopt, optuna

MODULE = "tests.support.experiments.searchers"
SPACE = {"a": tune.uniform(0, 9)}
SESSION = "2026-11-23_10-00-00"


@pytest.fixture
def save(tmp_path):
    """Save the state of a search that has drawn one of four, and return the store."""

    def saved(searcher):
        generator = SearchGenerator(searcher)
        generator._total_samples, generator._counter = 4, 1
        innermost(generator).suggest("t0")
        generator.save_to_dir(str(tmp_path), SESSION)
        return open_store(str(tmp_path))

    return saved


@pytest.mark.parametrize("make", [optuna, hyperopt])
def test_it_knows_what_the_lost_one_knew(save, make):
    store = save(make(SPACE))
    fitted = fit(store, {"search_alg": make()}, "m:make")["search_alg"]
    assert (fitted.total_samples, fitted.is_finished()) == (4, False)
    fitted.on_trial_complete("t0", result={"loss": 1.0, "training_iteration": 1})
    assert 0 <= innermost(fitted).suggest("t1")["a"] <= 9
    # a param_space that is given beside it does not set it up anew
    assert fitted.set_search_properties("loss", "min", {"a": tune.uniform(100, 101)})
    assert 0 <= innermost(fitted).suggest("t2")["a"] <= 9


def test_a_bare_searcher_is_limited_and_repeated_as_the_lost_one_was(save):
    wrapped = Repeater(ConcurrencyLimiter(optuna(SPACE), max_concurrent=3), repeat=2)
    store = save(wrapped)
    fitted = fit(store, {"search_alg": optuna()}, "m:make")["search_alg"]
    assert wrappers(fitted.searcher) == ["Repeater", "ConcurrencyLimiter"]
    assert (fitted.searcher.repeat, fitted.searcher.searcher.max_concurrent) == (2, 3)
    same = SearchGenerator(Repeater(ConcurrencyLimiter(optuna(), max_concurrent=9), repeat=7))
    fitted = fit(store, {"search_alg": same}, "m:make")["search_alg"]
    assert (fitted.searcher.repeat, fitted.searcher.searcher.max_concurrent) == (2, 3)


@pytest.mark.parametrize(
    ("lost", "named", "sentence"),
    [
        (optuna, hyperopt, "saved by another class than HyperOptSearch"),
        (hyperopt, optuna, "saved by another class than OptunaSearch"),
        (optuna, BasicVariantGenerator, "a BasicVariantGenerator is not a Searcher"),
        (optuna, Refusing, "saved by another class than Refusing"),
        (lambda _: Refusing(), optuna, "OptunaSearch failed to restore it with "),
        (
            optuna,
            lambda: ConcurrencyLimiter(optuna(), max_concurrent=1),
            "the saved one has the wrapper None, and this one has ConcurrencyLimiter",
        ),
    ],
)  # fmt: skip
def test_another_one_is_refused_in_a_sentence(save, lost, named, sentence):
    store = save(lost(SPACE))
    with pytest.raises(InvalidInputError, match=sentence) as refused:
        fit(store, {"search_alg": named()}, "m:named")
    assert f"search_alg m:named does not fit the saved searcher of {store.uri}" in str(
        refused.value
    )
    if "failed to restore" in sentence:  # which only restoring tells
        check(store, {"search_alg": named()}, "m:named")
        return
    with pytest.raises(InvalidInputError) as checked:
        check(store, {"search_alg": named()}, "m:named")
    assert str(checked.value) == str(refused.value)


@pytest.mark.parametrize("make", [optuna, hyperopt])
def test_a_check_lets_the_same_one_pass(save, make):
    wrapped = Repeater(ConcurrencyLimiter(make(SPACE), max_concurrent=3), repeat=2)
    store = save(wrapped)
    check(store, {"search_alg": make()}, "m:make")
    check(store, {"search_alg": SearchGenerator(wrapped)}, "m:make")


def test_a_damaged_state_is_refused_alike(save, tmp_path):
    store = save(optuna(SPACE))
    (tmp_path / f"search_gen_state-{SESSION}.json").write_bytes(b"\x80\x04")
    for ask in (check, fit):
        with pytest.raises(InvalidInputError, match=r"search_gen_state-.*json cannot be read"):
            ask(store, {"search_alg": optuna()}, "m:make")


def test_one_that_never_saved_what_it_learned_is_refused(save, tmp_path):
    store = save(optuna(SPACE))
    (tmp_path / f"searcher-state-{SESSION}.pkl").unlink()
    for ask in (check, fit):
        with pytest.raises(
            InvalidInputError, match=r"saved one is missing. Restore without search_alg"
        ):
            ask(store, {"search_alg": optuna()}, "m:make")


SCRIPT = f"""
import sys
from ray.tune.search import SearchGenerator
from ray.tune.search.optuna import OptunaSearch
from tests.trainables import counting

def space(trial):
    trial.suggest_float("a", 0, 9)

def searcher():
    return OptunaSearch(space=space, metric="loss", mode="min", seed=1)

if __name__ == "__main__":
    generator = SearchGenerator(searcher())
    generator.searcher.suggest("t0")
    generator.save_to_dir(sys.argv[1], "{SESSION}")
"""


def test_what_the_script_defined_is_found_in_the_module_it_is_here(tmp_path, monkeypatch):
    """OptunaSearch pickles a function of `python sweep.py` as `__main__.space`."""
    (tmp_path / "its_sweep.py").write_text(SCRIPT)
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    subprocess.run(
        [sys.executable, tmp_path / "its_sweep.py", experiment], check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT.as_posix()},
    )  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    named = RunnerRequest(
        experiment="", restore_id="", trial_id="", attempt=0, action="resume",
        trainable="its_sweep:counting", trainable_name="counting", search_alg="its_sweep:searcher",
    )  # fmt: skip
    fitted = load(open_store(str(experiment)), named).search["search_alg"]
    assert 0 <= innermost(fitted).suggest("t1")["a"] <= 9
    elsewhere = replace(named, trainable="tests.trainables:counting", search_alg=f"{MODULE}:optuna")
    with pytest.raises(
        InvalidInputError, match=r"'space' on <the script of .*tests.trainables"
    ) as no:
        load(open_store(str(experiment)), elsewhere)
    assert "import what it needs (imports, --import)" in str(no.value)
    load(open_store(str(experiment)), replace(elsewhere, imports=["its_sweep"]))


def test_a_damaged_state_is_refused(save, tmp_path):
    store = save(optuna(SPACE))
    (tmp_path / f"search_gen_state-{SESSION}.json").write_bytes(b"\x80\x04")
    with pytest.raises(InvalidInputError, match=r"search_gen_state-.* cannot be read"):
        fit(store, {"search_alg": optuna()}, "m:make")


def test_rays_own_searcher_needs_none(tmp_path):
    BasicVariantGenerator().save_to_dir(str(tmp_path), SESSION)
    assert fit(open_store(str(tmp_path)), {"search_alg": optuna()}, "m:make") == {}


def tuner():
    """A whole Tuner, as it stands in the script that made the experiment."""
    return tune.Tuner(
        lambda config: None, param_space=SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min", search_alg="optuna", num_samples=4),
        run_config=tune.RunConfig(name="sweep", storage_path=STORAGE[0]),
    )  # fmt: skip


STORAGE = [""]
CONFIG = tune.TuneConfig(metric="loss", mode="min", search_alg=Refusing())
EMPTY = tune.TuneConfig()
SEARCHER = SearchGenerator(Refusing())


def test_a_searcher_its_maker_a_tuner_or_its_config_is_loaded(tmp_path):
    here = __name__
    STORAGE[0] = str(tmp_path)
    assert load_search_alg(f"{here}:SEARCHER") == {"search_alg": SEARCHER}
    assert isinstance(load_search_alg(f"{MODULE}:Refusing")["search_alg"], Refusing)
    given = load_search_alg(f"{here}:CONFIG")
    assert given == {"metric": "loss", "mode": "min", "search_alg": CONFIG.search_alg}
    assert type(load_search_alg(f"{here}:tuner")["search_alg"]).__name__ == "OptunaSearch"
    assert not list(tmp_path.iterdir())  # a new Tuner writes tuner.pkl into the experiment it names


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (f"{MODULE}:missing", "has no 'missing'"),
        (f"{MODULE}:__name__", "is a str, not a searcher"),
        (f"{MODULE}:_with_space", "calling it failed with TypeError"),
        (f"{__name__}:EMPTY", "is a TuneConfig without a search_alg, not a searcher"),
        ("optuna", "is not of the form package.module:attribute"),
    ],
)
def test_what_is_none_is_refused(name, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        load_search_alg(name)


def test_it_is_fitted_only_where_tuner_pkl_is_lost(save):
    from ray import cloudpickle

    store = save(Refusing())
    request = RunnerRequest(
        experiment="", restore_id="", trial_id="", attempt=0, action="run",
        trainable="tests.trainables:counting", trainable_name="counting",
        search_alg=f"{MODULE}:optuna",
    )  # fmt: skip
    with pytest.raises(InvalidInputError, match="does not fit"):
        load(store, request)
    store.put("tuner.pkl", cloudpickle.dumps({}))
    assert load(store, request).has_tuner
