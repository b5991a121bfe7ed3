"""The present resource requests of trials, computed before Ray starts.

The present trainable decides, not the recorded row: Ray calls the class of the trainable for every trial
that it restores (ray.tune.experiment.trial.Trial.create_placement_group_factory, 2.60). This module calls
the same method.
"""

import copy
import json
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_tune_restore.exceptions import InvalidInputError, RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.resources import most_of
from airflow_tune_restore.runner.given import as_trainable
from airflow_tune_restore.runner.tune.private_api import replaced

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory
    from ray.tune.experiment import Trial

    from airflow_tune_restore.runner.tune.controller import AttemptContext

Asked = dict[str, "PlacementGroupFactory"]
"""The resource request of each trial, by its recorded id."""

FIRST_SAMPLE = "first sample"
"""In the place of a trial id, for an experiment that has no trials yet."""

logger = logging.getLogger(__name__)


def read_rows(context: "AttemptContext") -> list[str]:
    """Return the rows of the trials that set the size of a private Ray; none without a state.

    A state that cannot be read is a RunnerError.
    """
    key = context.source_key
    if key is None:
        return []
    body = context.store.get(key, max_bytes=layout.MAX_STATE_BYTES)
    try:
        rows = [row for row, _metadata in json.loads(body)["trial_data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunnerError(
            f"{key} could not be restored: it is not a valid state ({error}). Nothing was run."
        ) from error
    return [row for row in rows if context.counts_for_size(row)]


def ask(
    trainable: Any, rows: Sequence[str], param_space: Any, *, leaves_out_refused: bool = False
) -> Asked:
    """Return the present resource request of each trial; of a sample if there are no trials yet.

    Args:
        trainable: The user's trainable; it is registered with Tune, as Ray will do again.
        rows: Trials, as Ray's JSON.
        param_space: The source of references in configs, or None.
        leaves_out_refused: Whether a trial whose request cannot be computed is left out, and no error.

    Raises:
        InvalidInputError: If the trainable raises an error; the message has the trial.
        RunnerError: If Ray cannot read any row. A single damaged row is left out, as in the run.
    """
    from ray.tune.experiment import Experiment, Trial
    from ray.tune.impl.placeholder import create_resolvers_map, inject_placeholders

    name = Experiment.register_if_needed(as_trainable(trainable))
    resolvers = create_resolvers_map()
    if param_space is not None:
        space = param_space.to_dict() if hasattr(param_space, "to_dict") else param_space
        inject_placeholders(copy.deepcopy(space), resolvers)
    asked: Asked = {}
    reasons = []
    for row in rows:
        try:
            trial = Trial.from_json_state(row)
        except Exception as error:  # noqa: BLE001  a damaged pickle in it may raise anything
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        if resolvers:
            trial.resolve_config_placeholders(resolvers)
        try:
            asked[trial.trial_id] = ask_alone(trial)
        except InvalidInputError:
            if not leaves_out_refused:
                raise
    if reasons and not asked and not leaves_out_refused:
        raise RunnerError(
            f"Ray cannot read the row of a trial: {reasons[0].rstrip('.')}. Nothing was run."
        )
    if rows:
        return asked
    try:
        return {FIRST_SAMPLE: ask_alone(Trial(name, trial_id=FIRST_SAMPLE))}
    except InvalidInputError:
        logger.info(
            "The resources of a sample depend on its config: the private Ray is not sized for them."
        )
        return {}


def most(asked: Asked) -> dict[str, float]:
    """Return the largest amount of each resource that one trial requests."""
    return most_of(factory.required_resources for factory in asked.values())


def ask_alone(trial: "Trial") -> "PlacementGroupFactory":
    """Return the present resource request of one trial, whose config is resolved; raises as `ask`."""
    import ray

    recorded = trial.placement_group_factory
    with (
        # Ray's trainers call these, for a hint only (train.data_parallel_trainer, 2.60)
        replaced(ray, "available_resources", _machine),
        replaced(ray, "cluster_resources", _machine),
    ):
        try:
            trial.create_placement_group_factory()
        except ray.exceptions.RaySystemError as error:
            if recorded is None:
                raise _refusal(trial, error) from error
            logger.warning(
                "The resources of trial %s cannot be computed before Ray starts; its recorded ones are "
                "used: %s",
                *(trial.trial_id, error),
            )
            return recorded
        except Exception as error:  # the user's function or class may raise anything
            raise _refusal(trial, error) from error
    factory = trial.placement_group_factory
    if not factory.head_bundle_is_empty and factory.bundles[0].get("object_store_memory"):
        # it would end the run (ray._common.utils.resources_from_ray_options, 2.60)
        raise InvalidInputError(
            f"Trial {trial.trial_id} requests object_store_memory in its own bundle, which Ray refuses. "
            "Request it in another bundle (tune.PlacementGroupFactory), or not at all."
        )
    return factory


def _refusal(trial: "Trial", error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"Trial {trial.trial_id}: the resource request of {trial.trainable_name} failed with "
        f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}. Correct it "
        "(default_resource_request, tune.with_resources), so that it accepts the config of this trial."
    )


def _machine() -> dict[str, float]:
    return {"CPU": float(os.cpu_count() or 1)}
