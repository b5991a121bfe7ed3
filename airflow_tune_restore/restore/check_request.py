"""The question whether the trainable of a restore fits, before anything is leased."""

from collections.abc import Iterable

from airflow_tune_restore.protocol.check import CheckRequest, ExperimentToCheck
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.prepared import PreparedRestore


def build_check_request(
    settings: RunnerSettings, restores: Iterable[PreparedRestore]
) -> CheckRequest:
    """Return the request that checks the trainable of the settings against experiments."""
    return CheckRequest(
        trainable=settings.trainable,
        param_space=settings.param_space,
        imports=list(settings.imports),
        experiments=[
            ExperimentToCheck(
                experiment=restore.plan.experiment,
                trainable_name=restore.plan.trainable_name,
                state=restore.plan.base.name,
                search_alg=settings.search_alg if restore.searcher_lost else None,
                ignore_tuner=restore.plan.ignore_tuner,
                trust_name=restore.plan.choices.trust_name,
            )
            for restore in restores
        ],
    )
