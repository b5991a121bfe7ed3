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

_NEEDED = {
    # the controller that tune.run() makes, and its base class
    "ray.tune.tune:": "TuneController ExperimentAnalysis",
    "ray.tune.execution.tune_controller:TuneController.": "_restore_trials resume "
    "_requeue_restored_trials _requeue_trial _create_checkpoint_manager _get_trial_checkpoints "
    "_mark_trial_to_checkpoint _stop_experiment_if_needed _process_stop_requests _actor_started "
    "_schedule_trial_task",
    # the state file that resume() reads, and the runtime_env of trials
    "ray.tune.execution.tune_controller:": "_find_newest_experiment_checkpoint",
    "ray.tune.execution.class_cache:": "ENV_VARS_TO_PROPAGATE",
    # when and how states are saved
    "ray.tune.execution.experiment_state:": "_ExperimentCheckpointManager",
    "ray.tune.impl.out_of_band_serialize_dataset:": "out_of_band_serialize_dataset",
    "ray.tune.utils.serialization:": "TuneFunctionEncoder",
    # Tuner.restore, the analysis of the whole experiment it would load, and the place of a new tuner.pkl
    "ray.tune.impl.tuner_internal:": "TunerInternal ExperimentAnalysis StorageContext",
    "ray.tune.impl.tuner_internal:TunerInternal.": "_validate_param_space_on_restore",
    "ray.tune.tune_config:": "ResumeConfig",
    # searchers, and whether a search has ended
    "ray.tune.search.search_algorithm:": "SearchAlgorithm._finished",
    "ray.tune.search:": "SearchGenerator.restore_from_dir BasicVariantGenerator.set_finished",
    # the directory of a driver's files before their upload, and checkpoints
    "ray.train._internal.storage:": "StorageContext.experiment_driver_staging_path "
    "_create_directory _pyarrow_fs_copy_files",
    "ray.train._internal.session:": "_TrainingResult",
    "ray.train._internal.checkpoint_manager:": "_CheckpointManager",
    # rows, ids of restarted trials, resources of trials
    "ray.tune.experiment:Trial.": "generate_id from_json_state create_placement_group_factory "
    "resolve_config_placeholders",
    "ray.tune.experiment:Experiment.": "register_if_needed get_trainable_name",
    "ray.tune.registry:": "get_trainable_cls",
    "ray.tune.impl.placeholder:": "create_resolvers_map inject_placeholders",
    # resources of the machine, and Ray's SIGTERM handler
    "ray._private.accelerators:": "get_accelerator_manager_for_resource",
    # the lines that workers print
    "ray._private.ray_logging:": "global_worker_stdstream_dispatcher",
    "ray._private.utils:": "estimate_available_memory get_system_memory set_sigterm_handler",
}
"""Names by the prefix that they have in common: a module, or a class in it."""


def check() -> None:
    """Refuse a Ray that lacks some of the names (InvalidInputError, with the missing names)."""
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise InvalidInputError(
            f"{sys.executable} cannot import ray.tune ({error}). Install it: pip install 'ray[tune]'."
        ) from error
    needed = (owner + name for owner, names in _NEEDED.items() for name in names.split())
    missing = [name for name in needed if not _exists(name)]
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
