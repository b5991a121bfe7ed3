"""A Tuner with one sample and a reference in its param_space; of two: ../experiments/recipes.py."""

from typing import Any

from ray import tune  # noqa: TID253  only hosts and Ray's workers import this

from tests.support.experiments import recipes

uses_references = recipes.uses_references


def one(directory: str, name: str, cause: str) -> tune.Tuner:
    """Make it; it fails as long as its cause is there."""
    space = {**recipes.references(1), "cause": cause}
    return recipes._tuner(directory, name, uses_references, space)


def fresh() -> dict[str, Any]:
    """Return the param_space given at the restore, with the same keys."""
    return recipes.references(11)
