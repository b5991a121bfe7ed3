"""Searchers for tests: those of Ray that are installed, and one that refuses."""

import math
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher  # noqa: TID253  only hosts, runners and tests of the runner import this


def optuna(space: dict[str, Any] | None = None) -> Searcher:
    from ray.tune.search.optuna import OptunaSearch

    return _with_space(OptunaSearch(metric="loss", mode="min", seed=1), space)


def hyperopt(space: dict[str, Any] | None = None) -> Searcher:
    from ray.tune.search.hyperopt import HyperOptSearch

    return _with_space(HyperOptSearch(metric="loss", mode="min", random_state_seed=1), space)


def _with_space(searcher: Searcher, space: dict[str, Any] | None) -> Searcher:
    if space is not None:
        searcher.set_search_properties("loss", "min", space)
    return searcher


class Refusing(Searcher):
    """Suggests always the same; raises for `nan`, `results`, `ends`, `everything` told, `suggestions`."""

    def __init__(self, refuses: str = "everything") -> None:
        super().__init__(metric="loss", mode="min")
        self.refuses = refuses
        self.ends: list[tuple[str, dict[str, Any] | None, bool]] = []

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self._refuse("suggestions")
        return {"a": 1.0}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._refuse("results", "everything", result=result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.ends.append((trial_id, result, error))
        self._refuse("ends", "everything", result=result)

    def _refuse(self, *what: str, result: dict[str, Any] | None = None) -> None:
        is_nan = result is not None and math.isnan(result["loss"])
        if self.refuses in what or (self.refuses == "nan" and is_nan):
            raise ValueError("I refuse")

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(self.refuses)

    def restore(self, checkpoint_path: str) -> None:
        self.refuses = Path(checkpoint_path).read_text()
