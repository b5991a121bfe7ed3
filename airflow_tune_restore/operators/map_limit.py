"""Airflow's limit of mapped tasks, before anything is leased."""

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import PreparedRestore
from airflow_tune_restore.version_compat import conf


def refuse_too_many(batch: ExperimentBatch, prepared: dict[str, PreparedRestore]) -> None:
    """Refuse experiments whose trials Airflow would refuse to map.

    Restores that an earlier try has started come first and are never refused. Of the others the smallest
    are taken first, so one experiment with very many trials stops no other. The task `continue_search` is
    mapped over the experiments, so their number is limited, too.
    """
    limit = conf.getint("core", "max_map_length", fallback=1024)
    trials, experiments = 0, 0
    in_order = sorted(
        prepared.items(), key=lambda item: (not item[1].is_started, *_size(item[1].plan))
    )
    for text, restore in in_order:
        _, count = _size(restore.plan)
        if restore.is_started or (trials + count <= limit and experiments < limit):
            trials, experiments = trials + count, experiments + 1
            continue
        error = (
            f"It has {counted(count, 'trial')} to run, beside {counted(trials, 'trial')} of "
            f"{counted(experiments, 'other experiment')}, but Airflow maps at most {limit} tasks: [core] "
            "max_map_length (AIRFLOW__CORE__MAX_MAP_LENGTH). Raise it on API server, scheduler and "
            "workers, or restore fewer experiments at a time. It was not leased."
        )
        batch.refuse(text, InvalidInputError(error))


def _size(plan: RestorePlan) -> tuple[bool, int]:
    """Return the sort key of a plan: those that only continue the search are last and map no trial."""
    count = 0 if plan.only_continues_search else len(plan.to_run) + plan.continues_search
    return plan.only_continues_search, count
