"""Ray's own restore, with some of its names replaced by ours while it runs."""

from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.loading import Loaded, as_trainable
from airflow_tune_restore.runner.ray_session import is_job
from airflow_tune_restore.runner.tune.controller import Scope, bound_controller
from airflow_tune_restore.storage.arrow import arrow_filesystem
from airflow_tune_restore.storage.location import Location


def replacements(scope: Scope) -> list[tuple[Any, str, Any]]:
    """Return which of Ray's names are replaced while it runs, and by what."""
    from ray.train._internal.storage import StorageContext
    from ray.tune import tune as tune_module
    from ray.tune.execution import tune_controller
    from ray.tune.impl import tuner_internal

    staging = (scope.staging / "driver_artifacts").as_posix()
    return [
        *_without_credentials(scope.request),
        (tune_module, "TuneController", bound_controller(scope)),
        (
            tune_controller,
            "_find_newest_experiment_checkpoint",
            lambda path, **_kwargs: f"{path}/{scope.source_key}",
        ),
        # before the run it would read every trial of the experiment, in every runner; after it, the
        # rows of this one for a ResultGrid that nobody looks at
        (tuner_internal, "ExperimentAnalysis", _no_analysis),
        (tune_module, "ExperimentAnalysis", _EmptyAnalysis),
        # restored trials carry the staging directory of their old driver; two runners on one node
        # would share it and upload each other's files. Their `_timestamp` must stay as it is: a later
        # Tuner.restore stages all trials where the first row says
        (StorageContext, "experiment_driver_staging_path", property(lambda _self: staging)),
    ]


def _without_credentials(request: RunnerRequest) -> list[tuple[Any, str, Any]]:
    """Keep Ray Tune from handing AWS keys to the trial in its runtime_env.

    Ray writes those into its logs and its workers' command lines (ray.tune.execution.class_cache, seen
    in 2.60). A private Ray inherits our environment, and where we are a Ray job, every node has an
    identity of its own. The nodes of a cluster that we connect to by address may depend on it.
    """
    from ray.tune.execution import class_cache

    if request.address is not None and not is_job():
        return []
    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    return [(class_cache, "ENV_VARS_TO_PROPAGATE", names)]


def restore_tuner(scope: Scope, loaded: Loaded) -> None:
    """Restore with the RunConfig and TuneConfig of tuner.pkl.

    Raises:
        InvalidInputError: If Ray finds trainable or param_space unfit.
    """
    from ray import tune

    filesystem, path = arrow_filesystem(scope.request.experiment)
    try:
        tuner = tune.Tuner.restore(
            path,
            loaded.trainable,
            param_space=loaded.param_space,
            storage_filesystem=filesystem,
            _resume_config=scope.resume_config(),
        )
    except (TypeError, ValueError) as error:  # what Ray finds wrong with trainable or param_space
        raise InvalidInputError(" ".join(str(error).split())) from error
    tuner._local_tuner.get_run_config().verbose = 0  # its tables are for terminals
    if scope.source_key is None:
        # a restored Tuner would run one sample with an empty config (_fit_resume, 2.60)
        tuner._local_tuner._is_restored = False
    tuner.fit()


def restore_state(scope: Scope, loaded: Loaded) -> None:
    """Restore without tuner.pkl, as `Tuner.restore` would with a default RunConfig."""
    from ray import tune

    filesystem, path = arrow_filesystem(scope.request.experiment)
    location = Location.parse(path)
    tune.run(
        as_trainable(loaded.trainable),
        name=location.name,
        config=loaded.param_space,
        storage_path=str(location.parent),
        storage_filesystem=filesystem,
        resume_config=scope.resume_config(),
        raise_on_failed_trial=False,
        verbose=0,
        **loaded.search,
    )


def _no_analysis(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("not needed for one trial")  # Tuner.restore takes this for "none there"


class _EmptyAnalysis:
    """Stands for an ExperimentAnalysis without trials."""

    trials: tuple[Any, ...] = ()

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Read nothing."""
