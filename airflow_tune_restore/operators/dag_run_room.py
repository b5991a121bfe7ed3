"""The room of one DAG run, taken before anything is leased: Airflow's mapped tasks, and the XComs.

Experiments that find no room wait for the next DAG run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.operators.experiment_batch import ExperimentBatch
from airflow_tune_restore.operators.outcome_list import most_started
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.restore.part import limit_tasks
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepared import PreparedRestore
from airflow_tune_restore.version_compat import conf

MAP_LENGTH = "[core] max_map_length"
_NO_BYTES = "the XComs of this one have no room for it"


def take_what_fits(
    batch: ExperimentBatch, prepared: dict[str, PreparedRestore], max_trials: int | None = None
) -> dict[str, PreparedRestore]:
    """Return the restores that this DAG run takes; `batch` has the others as waiting.

    Restores that an earlier try has started come first and are never put off. Of the others, those come
    first that are dead for the longest time: whole ones, and then a part of one that did not fit. A
    whole-experiment run fits into any room: its last trials share a task. If the first of all is larger
    than the room, a place is kept for it, so that small ones do not keep it out for ever.
    """
    room = _Room.of_dag_run(max_trials)
    taken = {text: restore for text, restore in prepared.items() if restore.is_started}
    for text, restore in taken.items():
        room.take(text, restore.plan, restore.plan.task_count)
    others = sorted((text for text in prepared if text not in taken), key=_by_age(prepared))
    kept = int(bool(others) and room.needs_part(prepared[others[0]]))
    skipped: dict[str, str] = {}
    for text in others:
        restore = prepared[text]
        places = room.places(restore, kept)
        why = room.refusal(text, restore.plan, places, kept)
        if why:
            skipped[text] = why
        else:
            taken[text] = _limited(restore, places)
            room.take(text, taken[text].plan, places)
    part = next((text for text in skipped if room.has_part(prepared[text])), None)
    if part is not None:
        taken[part] = _limited(prepared[part], room.free)
        del skipped[part]
    for text in _beyond_outcomes(taken):
        del taken[text]
        skipped[text] = _NO_BYTES
    for text, why in skipped.items():
        plan = prepared[text].plan
        has = f"{counted(len(plan.to_run), 'trial')} to run, and " if plan.to_run else ""
        if _only_runs_again(plan):  # a row of DAG runs would never end
            batch.leave_alone(text, f"this DAG run has no room for its finished trials: {has}{why}")
        else:
            batch.wait(
                text, f"waits for the next DAG run: {has}{why}", trials=len(plan.left_to_run)
            )
    return taken


@dataclass(slots=True)
class _Room:
    """The room that is left in a DAG run.

    Args:
        limit: What limits its trials, for people.
        free: Tasks that trials can still have.
        experiments: Experiments that `continue_search` can still be mapped over.
        search_bytes: Bytes that the list of these experiments can still have.
    """

    limit: str
    free: int
    experiments: int
    search_bytes: int

    @classmethod
    def of_dag_run(cls, max_trials: int | None) -> "_Room":
        """Return the whole room."""
        mapped = conf.getint("core", "max_map_length", fallback=1024)
        trials = mapped if max_trials is None else min(max_trials, mapped)
        limit = f"{trials} ({'max_trials' if trials < mapped else MAP_LENGTH})"
        return cls(limit, trials, mapped, xcom_size.MAX_XCOM_BYTES - 1)

    def places(self, restore: PreparedRestore, kept: int) -> int:
        """Return how many tasks the trials of a restore get; a whole-experiment run makes do with less.

        One that only settles what a dead restore left may then find trials to run.
        """
        plan = restore.plan
        if plan.only_continues_search and not restore.nothing_to_do:
            return 0
        wanted = max(plan.task_count, int(bool(restore.nothing_to_do)))
        return min(wanted, max(self.free - kept, 1)) if plan.is_whole_experiment else wanted

    def refusal(self, address: str, plan: RestorePlan, places: int, kept: int) -> str:
        """Return why a restore does not fit; "" if it does."""
        if places > self.free - kept:
            return f"this one takes {self.limit}"
        if self.experiments < 1:
            return f"this one takes no more experiments ({MAP_LENGTH})"
        return _NO_BYTES if _search_bytes(address, plan) > self.search_bytes else ""

    def needs_part(self, restore: PreparedRestore) -> bool:
        """Whether only a part of it can ever fit into this DAG run."""
        return not restore.plan.is_whole_experiment and self.places(restore, 0) > self.free > 0

    def has_part(self, restore: PreparedRestore) -> bool:
        """Whether there is room for a part of it."""
        return self.needs_part(restore) and self.experiments > 0

    def take(self, address: str, plan: RestorePlan, places: int) -> None:
        """Take the room that a restore needs."""
        self.free -= places
        self.experiments -= 1
        self.search_bytes -= _search_bytes(address, plan)


def _limited(restore: PreparedRestore, places: int) -> PreparedRestore:
    """Return a restore that has no more tasks, also if it is planned again when it starts."""
    most = max(places, 1)
    options = replace(restore.options, most_tasks=most)
    return replace(restore, plan=limit_tasks(restore.plan, most), options=options)


def _beyond_outcomes(taken: dict[str, PreparedRestore]) -> list[str]:
    """Return the last of the restores, for which the XCom `outcomes` has no room."""
    count = most_started([(text, restore.plan.restore_id) for text, restore in taken.items()])
    return [text for text in list(taken)[max(count, 1) :] if not taken[text].is_started]


def _by_age(prepared: dict[str, PreparedRestore]) -> Callable[[str], tuple[bool, datetime, str]]:
    """Return the order of addresses: the longest dead first; before them those of unknown age.

    Those that only run finished trials again come last.
    """
    unknown = datetime.min.replace(tzinfo=UTC)

    def order(text: str) -> tuple[bool, datetime, str]:
        each = prepared[text]
        return _only_runs_again(each.plan), each.last_write or unknown, text

    return order


def _only_runs_again(plan: RestorePlan) -> bool:
    """Whether all trials to run have finished before: the next restore would choose them again."""
    return bool(plan.to_run) and not plan.left_to_run


def _search_bytes(address: str, plan: RestorePlan) -> int:
    """Return the bytes of an experiment in the list that `continue_search` is mapped over."""
    has_search = plan.only_continues_search or (plan.samples_left and not plan.choices.trials)
    return len(json.dumps(address)) + len(", ") if has_search else 0
