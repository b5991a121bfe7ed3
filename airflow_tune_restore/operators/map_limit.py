"""The limits of one DAG run, before anything is leased: Airflow's of mapped tasks, and those of XComs."""

import json
from dataclasses import dataclass

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.outcome_list import most_started
from airflow_tune_restore.operators.trial_items import build_reference
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.version_compat import conf


def refuse_too_many(batch: ExperimentBatch, prepared: dict[str, PreparedRestore]) -> None:
    """Refuse experiments whose trials Airflow would refuse to map, or that do not fit into the XComs.

    Restores that an earlier try has started come first and are never refused. Of the others the smallest
    are taken first, so one experiment with very many trials stops no other. The task `continue_search` is
    mapped over the experiments, so their number is limited, too.
    """
    room = _Room(conf.getint("core", "max_map_length", fallback=1024), places=len(batch.places))
    taken: list[str] = []
    for text in sorted(prepared, key=lambda text: _order(prepared[text])):
        why = "" if prepared[text].is_started else room.refusal(text, prepared[text].plan)
        if why:
            batch.refuse(text, InvalidInputError(f"{why} It was not leased."))
        else:
            room.take(text, prepared[text].plan)
            taken.append(text)
    count = most_started([(text, prepared[text].plan.restore_id) for text in taken])
    for text in taken[count:]:
        if not prepared[text].is_started:
            why = f"It comes after {counted(count, 'other experiment')}: more {_of_one_run()}"
            batch.refuse(text, InvalidInputError(f"{why} It was not leased."))


@dataclass(slots=True)
class _Room:
    """The room in a DAG run that is taken so far: mapped tasks, and bytes of the XComs behind them.

    Args:
        limit: How many tasks Airflow maps at most.
        places: How many experiments the plan was given.
    """

    limit: int
    places: int
    trials: int = 0
    experiments: int = 0
    trial_bytes: int = 0
    search_bytes: int = 0

    def refusal(self, address: str, plan: RestorePlan) -> str:
        """Return why an experiment does not fit any more; "" if it does."""
        count = len(_mapped_trials(plan))
        others = (
            f"{counted(self.trials, 'trial')} of {counted(self.experiments, 'other experiment')}"
        )
        needs = f"It has {counted(count, 'trial')} to run, beside {others}"
        if self.trials + count > self.limit or self.experiments >= self.limit:
            return (
                f"{needs}, but Airflow maps at most {self.limit} tasks: [core] max_map_length "
                "(AIRFLOW__CORE__MAX_MAP_LENGTH). Raise it on API server, scheduler and workers, or "
                "restore fewer experiments at a time."
            )
        if self.trial_bytes + self._trial_bytes(plan) >= xcom_size.MAX_XCOM_BYTES:
            return f"{needs}: more {_of_one_run()}"
        if self.search_bytes + _search_bytes(address, plan) >= xcom_size.MAX_XCOM_BYTES:
            return f"Its search goes on, beside that of {others}: more {_of_one_run()}"
        return ""

    def take(self, address: str, plan: RestorePlan) -> None:
        """Take the room that an experiment needs."""
        self.trials += len(_mapped_trials(plan))
        self.experiments += 1
        self.trial_bytes += self._trial_bytes(plan)
        self.search_bytes += _search_bytes(address, plan)

    def _trial_bytes(self, plan: RestorePlan) -> int:
        """Return the bytes of its trials in the list that the plan returns, in its shortest form."""
        trials = _mapped_trials(plan)
        return sum(_size(build_reference(self.places, trial_id)) for trial_id in trials)


def _of_one_run() -> str:
    return (
        f"than an XCom of {xcom_size.MAX_XCOM_BYTES // 1024} KiB holds. Start another DAG run after this "
        "one: it finds this experiment again."
    )


def _order(restore: PreparedRestore) -> tuple[bool, bool, int]:
    """Put restores that were started first; those that only continue the search map no trial."""
    plan = restore.plan
    return not restore.is_started, plan.only_continues_search, len(_mapped_trials(plan))


def _mapped_trials(plan: RestorePlan) -> list[str]:
    """Return the ids of the trials that get a mapped task; the samples to draw get one, too."""
    if plan.only_continues_search:
        return []
    return [trial.trial_id for trial in plan.to_run] + [WHOLE_EXPERIMENT] * plan.continues_search


def _search_bytes(address: str, plan: RestorePlan) -> int:
    """Return the bytes of an experiment in the list that `continue_search` is mapped over."""
    return _size(address) if plan.only_continues_search or plan.samples_left else 0


def _size(item: str) -> int:
    return len(json.dumps(item)) + len(", ")
