"""What trials ask for now, computed before there is a Ray to run them.

The trainable of now decides, not the recorded row: Ray asks its class anew for every trial that it
restores (ray.tune.experiment.trial.Trial.create_placement_group_factory, 2.60). So does this, by that
very method.
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
from airflow_tune_restore.runner.loading import as_trainable
from airflow_tune_restore.runner.tune.private_api import replaced

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory
    from ray.tune.experiment import Trial

    from airflow_tune_restore.runner.tune.controller import Scope

Asked = dict[str, "PlacementGroupFactory"]
"""What each trial asks for, by its recorded id."""

UNDRAWN = "not drawn yet"
"""Stands for the id of a sample of an experiment that has no trials."""

logger = logging.getLogger(__name__)


def read_rows(scope: "Scope") -> list[str]:
    """Return the rows of the trials that a run is sized for, as Ray's JSON; none if there is no state.

    Raises:
        RunnerError: If the state cannot be read.
    """
    key = scope.source_key
    if key is None:
        return []
    body = scope.store.get(key, max_bytes=layout.MAX_STATE_BYTES)
    try:
        rows = [row for row, _metadata in json.loads(body)["trial_data"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunnerError(
            f"{key} could not be restored: it makes no sense ({error}). Nothing was run."
        ) from error
    return [row for row in rows if scope.sizes(row)]


def ask(trainable: Any, rows: Sequence[str], param_space: Any) -> Asked:
    """Return what each trial asks for now; of an experiment without trials, what a sample does.

    Args:
        trainable: What the user gave; it is registered with Tune, as Ray will do again.
        rows: Trials, as Ray's JSON.
        param_space: What the references of a config are refreshed from, or None.

    Raises:
        InvalidInputError: If asking the trainable fails, naming the trial.
        RunnerError: If Ray can read none of the rows. One of many is left out, as it will be in the run.
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
        asked[trial.trial_id] = _ask(trial)
    if reasons and not asked:
        raise RunnerError(
            f"Ray cannot read the row of a trial: {reasons[0].rstrip('.')}. Nothing was run."
        )
    if rows:
        return asked
    try:
        return {UNDRAWN: _ask(Trial(name, trial_id=UNDRAWN))}
    except InvalidInputError:
        logger.info(
            "What a sample asks for depends on its config: nothing is sized by it beforehand."
        )
        return {}


def most(asked: Asked) -> dict[str, float]:
    """Return the most that one trial asks for, of each resource."""
    return most_of(factory.required_resources for factory in asked.values())


def _ask(trial: "Trial") -> "PlacementGroupFactory":
    import ray

    recorded = trial.placement_group_factory
    with (
        # Ray's trainers look there, for a hint only (train.data_parallel_trainer, 2.60)
        replaced(ray, "available_resources", _machine),
        replaced(ray, "cluster_resources", _machine),
    ):
        try:
            trial.create_placement_group_factory()
        except ray.exceptions.RaySystemError as error:
            if recorded is None:
                raise _refusal(trial, error) from error
            logger.warning(
                "Trial %s cannot be asked for its resources before there is a Ray; it is taken to ask "
                "for what was recorded: %s",
                *(trial.trial_id, error),
            )
            return recorded
        except Exception as error:  # the user's function or class may raise anything
            raise _refusal(trial, error) from error
    factory = trial.placement_group_factory
    if not factory.head_bundle_is_empty and factory.bundles[0].get("object_store_memory"):
        # it would break the run off (ray._common.utils.resources_from_ray_options, 2.60)
        raise InvalidInputError(
            f"Trial {trial.trial_id} asks for object_store_memory in the bundle that it runs in itself, "
            "which Ray refuses. Ask for it in another bundle (tune.PlacementGroupFactory), or not at all."
        )
    return factory


def _refusal(trial: "Trial", error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"Trial {trial.trial_id}: asking {trial.trainable_name} for its resources failed with "
        f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}. Mend what it asks for "
        "(default_resource_request, tune.with_resources), so that it takes the config of this trial."
    )


def _machine() -> dict[str, float]:
    """Return what a Ray of this machine has at least."""
    return {"CPU": float(os.cpu_count() or 1)}
