"""Tuners of the behaviours that Ray's own restore tests pin, made where Ray is.

Each function makes one; a `Pair` names it. What they need of Ray's workers is importable from here.
"""

import json
import os
from pathlib import Path
from typing import Any

from ray import tune  # noqa: TID253  only hosts and Ray's workers import this
from ray.tune.schedulers import FIFOScheduler, TrialScheduler  # noqa: TID253
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher  # noqa: TID253

from tests import trainables as t
from tests.support.experiments import generated as drawn


def counts(directory: str, name: str, trials: list[dict], **recipe: Any) -> tune.Tuner:
    """Trials that count, as `drawn` makes them; here with every part of the recipe given a default."""
    defaults = {
        "kind": "function", "num_to_keep": None, "by_score": False, "frequency": 1,
        "checkpoint_at_end": False, "resources": "all", "concurrent": None, "max_failures": 0,
        "config": {}, "search": "grid", "asha": False, "creators": {},
    }  # fmt: skip
    trials = [{"iterations": 3, "checkpoint_every": 1, "factor": 1, **trial} for trial in trials]
    return drawn.make_tuner(directory, name, {**defaults, **recipe, "trials": trials})


function, Class = drawn.function, drawn.Class


def _tuner(directory: str, name: str, trainable: Any, space: dict, *, run: dict | None = None,
           **config: Any) -> tune.Tuner:  # fmt: skip
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(metric="score", mode="max", **config),
        run_config=t.RunConfig(name=name, storage_path=directory, verbose=0, **(run or {})),
    )


def _trial(cause: str, **more: Any) -> dict:
    return {"iterations": 3, "checkpoint_every": 1, "factor": 1, "cause": cause, **more}


def used_again(directory: str, name: str) -> None:
    """Make a Tuner of another trainable under a name that is taken: Ray writes tuner.pkl at once."""
    _tuner(directory, name, Class, {})


# --- a trial that is paused when the driver dies ---


class PausesFirst(FIFOScheduler):
    """Pauses the first trial at its second result until no other is left; then lets it go on."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        is_first = trial.trial_id.endswith("00000")
        if is_first and result["training_iteration"] == 2 and _others_live(tune_controller, trial):
            return TrialScheduler.PAUSE
        return TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is not None or tune_controller.get_live_trials() == []:
            return chosen
        paused = [x for x in tune_controller.get_trials() if x.status == "PAUSED"]
        return paused[0] if paused and not _others_live(tune_controller, paused[0]) else None


def _others_live(controller: Any, trial: Any) -> bool:
    trials = controller.get_trials()
    return len(trials) < 2 or any(x is not trial and not x.is_finished() for x in trials)


def paused(directory: str, name: str, cause: str) -> tune.Tuner:
    """One trial at a time: the first is paused, and then the second is started."""
    trials = [_trial(cause, name="a"), _trial(cause, name="b", iterations=4)]
    return _tuner(
        directory, name, tune.with_resources(drawn.Class, {"cpu": 4}),
        {"trial": tune.grid_search(trials)},
        run={"checkpoint_config": t.CheckpointConfig(checkpoint_frequency=1)},
        scheduler=PausesFirst(),
    )  # fmt: skip


# --- loading a checkpoint fails a few times (TUNE_RESTORE_RETRY_NUM) ---


class FailsToLoad(drawn.Class):
    """Fails while it loads a checkpoint, as long as `loads` in a file is positive; counts it down."""

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        left = Path(self.config["trial"]["left"])
        number = int(left.read_text())
        left.write_text(str(number - 1))
        if number > 0:
            raise RuntimeError("the checkpoint cannot be loaded yet")
        super().load_checkpoint(checkpoint_dir)


def fails_to_load(directory: str, name: str, cause: str, left: str) -> tune.Tuner:
    trial = _trial(cause, left=left)
    config = t.CheckpointConfig(checkpoint_frequency=1)
    return _tuner(directory, name, FailsToLoad, {"trial": trial}, run={"checkpoint_config": config})


# --- searchers, schedulers, callbacks and stoppers with a state ---


class CountingSearcher(Searcher):
    """Suggests 1, 2, 3 … and remembers every result; its state is all it knows."""

    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.suggested = 0
        self.results: list[int] = []
        self.completed: list[str] = []

    def suggest(self, trial_id: str) -> dict:
        self.suggested += 1
        return {"trial": _trial(os.environ.get("CONFORMANCE_CAUSE", ""), number=self.suggested,
                                fails_at=2 if self.suggested == 1 else None)}  # fmt: skip

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        self.results.append(result["training_iteration"])
        _tell("searcher", self.results)

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        self.completed.append("error" if error else "done")
        _tell("completed", self.completed)

    def save(self, checkpoint_path: str) -> None:
        state = [self.suggested, self.results, self.completed]
        Path(checkpoint_path).write_text(json.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        self.suggested, self.results, self.completed = json.loads(Path(checkpoint_path).read_text())


class CountingScheduler(FIFOScheduler):
    """Ray does not save schedulers: it counts what it is told in this run."""

    def __init__(self) -> None:
        super().__init__()
        self.results = 0

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        self.results += 1
        _tell("scheduler", self.results)
        return super().on_trial_result(tune_controller, trial, result)


def _tell(what: str, value: Any) -> None:
    """Leave word for the test; `CONFORMANCE_TOLD` is a directory of the restore under way."""
    if directory := os.environ.get("CONFORMANCE_TOLD"):
        Path(directory, what).write_text(json.dumps(value))


def searched(directory: str, name: str) -> tune.Tuner:
    """Two samples, one after another; the first fails at its second iteration."""
    return _tuner(
        directory, name, drawn.function, {}, num_samples=2, max_concurrent_trials=1,
        search_alg=CountingSearcher(), scheduler=CountingScheduler(),
    )  # fmt: skip


class RefusingSearcher(CountingSearcher):
    """Raises in whatever method `CONFORMANCE_REFUSES` names, once the experiment is restored."""

    def _refuse(self, method: str) -> None:
        if method in os.environ.get("CONFORMANCE_REFUSES", ""):
            raise ValueError(f"{method} is refused")

    def suggest(self, trial_id: str) -> dict:
        self._refuse("suggest")
        return super().suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        self._refuse("on_trial_result")
        super().on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        self._refuse("on_trial_complete")
        super().on_trial_complete(trial_id, result, error)


def refusing(directory: str, name: str) -> tune.Tuner:
    """Three samples, one after another."""
    return _tuner(
        directory, name, drawn.function, {}, num_samples=3, max_concurrent_trials=1,
        search_alg=RefusingSearcher(),
    )  # fmt: skip


def learned(directory: str, name: str, kind: str) -> tune.Tuner:
    """Four samples of a searcher that learns, two at a time."""
    space = {"a": tune.uniform(0, 1), "b": tune.uniform(0, 1)}
    return _tuner(
        directory, name, short, space, num_samples=4, max_concurrent_trials=2, search_alg=kind
    )  # fmt: skip


def repeated(directory: str, name: str) -> tune.Tuner:
    """Every suggestion twice, two at a time."""
    limited = ConcurrencyLimiter(CountingSearcher(), max_concurrent=1)
    return _tuner(
        directory, name, drawn.function, {}, num_samples=4,
        search_alg=Repeater(limited, repeat=2, set_index=False),
    )  # fmt: skip


class CountingCallback(tune.Callback):
    """Counts results over all restores: its state is saved beside the experiment's."""

    def __init__(self) -> None:
        self.seen = 0

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any):
        self.seen += 1
        _tell("callback", self.seen)

    def get_state(self) -> dict:
        return {"seen": self.seen}

    def set_state(self, state: dict) -> None:
        self.seen = state["seen"]


class StopsAfterFive(tune.Stopper):
    """Stops a trial after its fifth result in all, told apart by a count of its own."""

    def __init__(self) -> None:
        self.results: dict[str, int] = {}

    def __call__(self, trial_id: str, result: dict) -> bool:
        self.results[trial_id] = self.results.get(trial_id, 0) + 1
        return self.results[trial_id] >= 5

    def stop_all(self) -> bool:
        return False


def with_states(directory: str, name: str, cause: str, second_cause: str) -> tune.Tuner:
    """One trial that fails at 3, and in the next restore at 4; a callback and a stopper count."""
    trial = _trial(cause, iterations=9, fails_at=3, second=[4, second_cause])
    run = {"callbacks": [CountingCallback()], "stop": StopsAfterFive()}
    return _tuner(directory, name, fails_twice, {"trial": trial}, run=run)


def fails_twice(config: dict) -> None:
    """Fail at one iteration as long as one cause exists, at another as long as another does."""
    trial = config["trial"]
    fails_at, cause = trial["second"]
    if not Path(trial["cause"]).exists():
        trial = {**trial, "fails_at": fails_at, "cause": cause}
    drawn.function({"trial": trial})


def budgeted(directory: str, name: str, cause: str) -> tune.Tuner:
    """One that fails long before its time budget is spent."""
    return _tuner(directory, name, slowly, {"trial": _trial(cause, fails_at=2)}, time_budget_s=3600)


def slowly(config: dict) -> None:
    """Take half a second for an iteration."""
    import time

    score = drawn.score

    def slow(trial: dict, iteration: int) -> int:
        time.sleep(0.5)
        return score(trial, iteration)

    drawn.score = slow
    drawn.function(config)


def failing_fast(directory: str, name: str, cause: str) -> tune.Tuner:
    """Two at a time; one fails while the other has just begun, and `fail_fast` ends both."""
    trials = [_trial(cause, iterations=4, fails_at=3), _trial(cause, iterations=12)]
    return _tuner(
        directory, name, slowly, {"trial": tune.grid_search(trials)},
        run={"failure_config": t.FailureConfig(fail_fast=True)},
    )  # fmt: skip


# --- grids whose samples are not all drawn ---


def grid(directory: str, name: str, preset: bool) -> tune.Tuner:
    """A grid of four, with one point given beforehand if `preset`."""
    from ray.tune.search import BasicVariantGenerator

    space = {"a": tune.grid_search([1, 2]), "b": tune.grid_search([1, 2])}
    points = [{"a": -1}] if preset else None
    return _tuner(
        directory, name, short, space,
        search_alg=BasicVariantGenerator(points_to_evaluate=points, max_concurrent=1),
        num_samples=2 if preset else 1,
    )  # fmt: skip


def short(config: dict) -> None:
    """Report once."""
    t._session.report({"score": config["a"] * 10 + config["b"]})


# --- what a config holds ---


class Reference:
    """Stands for a Dataset: it cannot be told from its JSON, and is given anew at a restore."""

    def __init__(self, number: int) -> None:
        self.number = number


def uses_references(config: dict) -> None:
    if Path(config["cause"]).exists():
        raise RuntimeError("the references are stale")
    t._session.report({"score": config["table"].number, "held": config["held"].__name__})


def referenced(directory: str, name: str, cause: str) -> tune.Tuner:
    """Two samples with a reference each; a class stands in the config, too."""
    space = {**references(1, 2), "cause": cause}
    return _tuner(directory, name, uses_references, space, max_concurrent_trials=1)


def references(*numbers: int) -> dict[str, Any]:
    return {
        "table": tune.grid_search([Reference(number) for number in numbers]),
        "held": Reference,
        "cause": "",
    }


def fresh_references() -> dict[str, Any]:
    """The param_space given at the restore, with the same keys."""
    return references(11, 12)


# --- trainables by other means ---


def resourceful(directory: str, name: str, cause: str) -> tune.Tuner:
    asks = tune.with_resources(asked, {"cpu": 1})
    return _tuner(directory, name, asks, {"trial": _trial(cause, fails_at=2)})


def asked(config: dict) -> None:
    """Count, and tell of the CPUs it was given."""
    from ray.util import get_current_placement_group

    score = drawn.score
    bundles = get_current_placement_group().bundle_specs
    drawn.score = lambda trial, iteration: (
        int(sum(b.get("CPU", 0) for b in bundles)) or score(trial, iteration)
    )
    drawn.function(config)


asks_for_two = tune.with_resources(asked, {"cpu": 2})


class WithParameters(drawn.Class):
    def setup(self, config: dict, table: list | None = None) -> None:
        assert table == [1, 2, 3]
        super().setup(config)


with_parameters = tune.with_parameters(WithParameters, table=[1, 2, 3])


def parameterised(directory: str, name: str, cause: str) -> tune.Tuner:
    config = t.CheckpointConfig(checkpoint_frequency=1)
    return _tuner(
        directory, name, with_parameters, {"trial": _trial(cause, fails_at=3)},
        run={"checkpoint_config": config},
    )  # fmt: skip


class AsksToSave(drawn.Class):
    """Says itself when it wants to be saved: at even iterations."""

    def step(self) -> dict:
        result = super().step()
        return {**result, "should_checkpoint": self.count % 2 == 0}


def asks_to_save(directory: str, name: str, cause: str) -> tune.Tuner:
    return _tuner(directory, name, AsksToSave, {"trial": _trial(cause, iterations=4, fails_at=4)})
