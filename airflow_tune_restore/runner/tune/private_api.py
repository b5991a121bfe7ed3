"""Every private name of Ray that the runner depends on.

Ray 2.40 and 2.60 have all of them. They are checked once at the start, so that a Ray that moved one is
refused with its name, instead of a failure in the middle of a trial.
"""

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError

_NEEDED = (
    # the controller tune.run() makes, and the class behind it
    "ray.tune.tune:TuneController",
    "ray.tune.execution.tune_controller:TuneController._restore_trials",
    "ray.tune.execution.tune_controller:TuneController._requeue_restored_trials",
    "ray.tune.execution.tune_controller:TuneController._create_checkpoint_manager",
    "ray.tune.execution.tune_controller:TuneController._get_trial_checkpoints",
    "ray.tune.execution.tune_controller:TuneController._mark_trial_to_checkpoint",
    "ray.tune.execution.tune_controller:TuneController.resume",
    # the state file that resume() reads
    "ray.tune.execution.tune_controller:_find_newest_experiment_checkpoint",
    # the runtime_env of trials
    "ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE",
    # when and how states are saved
    "ray.tune.execution.experiment_state:_ExperimentCheckpointManager",
    # Tuner.restore, and the analysis of the whole experiment it would load
    "ray.tune.impl.tuner_internal:TunerInternal",
    "ray.tune.impl.tuner_internal:TunerInternal._validate_param_space_on_restore",
    "ray.tune.impl.tuner_internal:ExperimentAnalysis",
    "ray.tune.tune:ExperimentAnalysis",
    # the place of a new Tuner's tuner.pkl, and whether a search has ended
    "ray.tune.impl.tuner_internal:StorageContext",
    "ray.tune.search.search_algorithm:SearchAlgorithm._finished",
    "ray.tune.search:SearchGenerator.restore_from_dir",
    # the directory of a driver's files before their upload
    "ray.train._internal.storage:StorageContext.experiment_driver_staging_path",
    "ray.train._internal.storage:_upload_to_fs_path",
    "ray.train._internal.session:_TrainingResult",
    "ray.train._internal.checkpoint_manager:_CheckpointManager",
    "ray.tune.impl.out_of_band_serialize_dataset:out_of_band_serialize_dataset",
    # Ray's own retries of a failed trial, and its SIGTERM handler
    "ray.tune.execution.tune_controller:TuneController._requeue_trial",
    "ray._private.utils:set_sigterm_handler",
    # ids of restarted trials, and JSON of rows
    "ray.tune.experiment:Trial.generate_id",
    "ray.tune.experiment:Trial.from_json_state",
    # resources of trials and of the machine
    "ray.tune.experiment:Trial.create_placement_group_factory",
    "ray.tune.experiment:Trial.from_json_state",
    "ray.tune.experiment:Trial.resolve_config_placeholders",
    "ray.tune.experiment:Experiment.register_if_needed",
    "ray.tune.impl.placeholder:create_resolvers_map",
    "ray.tune.impl.placeholder:inject_placeholders",
    "ray._private.accelerators:get_accelerator_manager_for_resource",
    "ray._private.utils:estimate_available_memory",
    "ray._private.utils:get_system_memory",
    "ray.tune.experiment:Experiment.get_trainable_name",
    "ray.tune.utils.serialization:TuneFunctionEncoder",
    "ray.tune.search:BasicVariantGenerator.set_finished",
    "ray.tune.tune_config:ResumeConfig",
)


def check() -> None:
    """Refuse a Ray that lacks one of the names.

    Raises:
        InvalidInputError: With the missing names.
    """
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise InvalidInputError(
            f"{sys.executable} cannot import ray.tune ({error}). Install it: pip install 'ray[tune]'."
        ) from error
    missing = [name for name in _NEEDED if not _exists(name)]
    if missing:
        raise InvalidInputError(
            f"Ray {ray.__version__} is not supported by this version of airflow-tune-restore: "
            f"{', '.join(missing)} moved. Use a Ray version from its compatibility table."
        )


def _exists(name: str) -> bool:
    module_name, _, path = name.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError):
        return False
    return True


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace one of Ray's names until the block ends."""
    original = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def version() -> str:
    """Return Ray's version; "" if Ray is not installed."""
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return ""
