"""Ray's own restore, with some of Ray's names replaced while it runs."""

from typing import Any

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.given import as_trainable
from airflow_tune_restore.runner.loading import Loaded
from airflow_tune_restore.runner.ray_session import is_own_job
from airflow_tune_restore.runner.tune.controller import AttemptContext, GuardedController
from airflow_tune_restore.runner.tune.experiment_controller import ExperimentController
from airflow_tune_restore.runner.tune.shared_context import SharedContext
from airflow_tune_restore.runner.tune.shared_controller import SharedController
from airflow_tune_restore.runner.tune.trial_controller import TrialContext, TrialController
from airflow_tune_restore.storage.fs import arrow_filesystem
from airflow_tune_restore.storage.location import Location


def replacements(context: AttemptContext) -> list[tuple[Any, str, Any]]:
    """Return the owner, name and new value of each name of Ray that is replaced while it runs."""
    from ray.train._internal.storage import StorageContext
    from ray.tune import tune as tune_module
    from ray.tune.execution import tune_controller
    from ray.tune.impl import tuner_internal

    staging = (context.staging / "driver_artifacts").as_posix()
    return [
        *_without_credentials(context.request),
        (tune_module, "TuneController", _controller(context)),
        (
            tune_controller,
            "_find_newest_experiment_checkpoint",
            lambda path, **_kwargs: f"{path}/{context.source_key}",
        ),
        # before the run, every runner would read all trials of the experiment; after it, the rows of
        # this run for a ResultGrid that is not used
        (tuner_internal, "ExperimentAnalysis", _no_analysis),
        (tune_module, "ExperimentAnalysis", _EmptyAnalysis),
        # restored trials have the staging directory of their old driver. Two runners on one node would
        # share it and upload the files of each other. Their `_timestamp` must stay as it is: a later
        # Tuner.restore stages all trials under the timestamp of the first row
        (StorageContext, "experiment_driver_staging_path", property(lambda _self: staging)),
    ]


def _controller(context: AttemptContext) -> type[GuardedController]:
    """Return the controller class that `tune.run` makes instead of Ray's, bound to the context."""
    kind: type[GuardedController] = ExperimentController
    if isinstance(context, TrialContext):
        kind = TrialController
    elif isinstance(context, SharedContext):
        kind = SharedController
    return type("BoundController", (kind,), {"context": context})


def _without_credentials(request: RunnerRequest) -> list[tuple[Any, str, Any]]:
    """Keep Ray Tune from copying AWS keys into the runtime_env of a trial.

    Ray writes them into its logs and the command lines of its workers (ray.tune.execution.class_cache,
    seen in 2.60). A private Ray inherits the runner's environment. If the runner is a Ray job, the nodes
    have identities of their own. Only nodes of a cluster that is joined by address may need the keys.
    """
    from ray.tune.execution import class_cache

    if request.address is not None and not is_own_job(request):
        return []
    names = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    return [(class_cache, "ENV_VARS_TO_PROPAGATE", names)]


def restore_tuner(context: AttemptContext, loaded: Loaded) -> None:
    """Restore with the RunConfig and TuneConfig of tuner.pkl.

    If Ray refuses trainable or param_space, this is an InvalidInputError.
    """
    from ray import tune

    filesystem, path = arrow_filesystem(context.request.experiment)
    try:
        tuner = tune.Tuner.restore(
            path,
            loaded.trainable,
            param_space=loaded.param_space,
            storage_filesystem=filesystem,
            _resume_config=context.resume_config(),
        )
    except (TypeError, ValueError) as error:  # Ray refuses trainable or param_space
        raise InvalidInputError(" ".join(str(error).split())) from error
    tuner._local_tuner.get_run_config().verbose = 0  # its tables are for terminals
    if context.source_key is None:
        # a restored Tuner would run one sample with an empty config (_fit_resume, 2.60)
        tuner._local_tuner._is_restored = False
    tuner.fit()


def restore_state(context: AttemptContext, loaded: Loaded) -> None:
    """Restore without tuner.pkl, as `Tuner.restore` would with a default RunConfig."""
    from ray import tune

    filesystem, path = arrow_filesystem(context.request.experiment)
    location = Location.parse(path)
    tune.run(
        as_trainable(loaded.trainable),
        name=location.name,
        config=loaded.param_space,
        storage_path=str(location.parent),
        storage_filesystem=filesystem,
        resume_config=context.resume_config(),
        raise_on_failed_trial=False,
        verbose=0,
        **loaded.search,
    )


def _no_analysis(*_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("not needed")  # then Tuner.restore goes on without an analysis


class _EmptyAnalysis:
    """Replaces ExperimentAnalysis: it has no trials."""

    trials: tuple[Any, ...] = ()

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Read nothing."""
