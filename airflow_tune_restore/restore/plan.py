"""The plan of a restore: what happens to each trial, and why. Later processes read its JSON."""

import contextlib
from dataclasses import dataclass, replace
from enum import StrEnum
from shlex import quote

import msgspec

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    KeyNotFoundError,
    RecordUnreadableError,
)
from airflow_tune_restore.experiments.experiment import NO_STATE_FILE, StateFile
from airflow_tune_restore.experiments.parameters import bounded_parameters
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol import layout, names, window
from airflow_tune_restore.protocol.numbers import is_count
from airflow_tune_restore.protocol.printable import NOTE_LENGTH, printable
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import RUN_ACTIONS, TrialAction
from airflow_tune_restore.restore.choices import PlanChoices, Strategy
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.record_json import Count, decode, encode
from airflow_tune_restore.storage.base import ObjectStore

ADMIN_DAG = "tune_restore_admin"
"""The DAG for operations by hand (dags/tune_restore_admin.py)."""

NOT_CHOSEN = "not among the chosen trials, stays as it is"
"""The reason of a trial that the user did not choose."""

_SHOWN_IDS = 5


class RunOption(StrEnum):
    """The choice that would run a trial which the plan keeps or ends."""

    RESUME_ERRORED = "resume_errored"
    RESUME_UNFINISHED = "resume_unfinished"
    RESUME_CUT_SHORT = "resume_cut_short"
    ALLOW_SCRATCH = "allow_scratch"
    FINISHED = "finished"


class TrialPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The action for one trial, and the reason. A Struct, because there are thousands of them.

    Args:
        trial_id, status: Those in the state that the plan was made from.
        trial_dir: Its directory name in the experiment directory; None if it never started.
        checkpoint: Directory name of the checkpoint it starts from; None to start from scratch.
        iteration: `training_iteration` it starts after; 0 from scratch.
        reason: For people.
        resources: The resources it requests, as `{"CPU": 1.0}`.
        new_trial_id: Id of the trial that takes its row; for `restart` only.
        quarantined: Whether it is kept, and no flag would run it, because it failed too often.
        runs_with: The option that would run it; None if it is run, or if none of these would.
        parameters: The values of the parameters in which the trials differ, for people.
        shares_driver: Whether it may share a driver with others (`restore.sharing`).
    """

    trial_id: str
    status: TrialStatus
    trial_dir: str | None
    action: TrialAction
    checkpoint: str | None
    iteration: Count
    reason: str
    resources: dict[str, float]
    new_trial_id: str | None = None
    quarantined: bool = False
    runs_with: RunOption | None = None
    parameters: dict[str, str] = {}
    shares_driver: bool = False

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "reason", printable(self.reason, NOTE_LENGTH))
        if self.parameters:
            shown = bounded_parameters(self.parameters)
            msgspec.structs.force_setattr(self, "parameters", shown)

    @property
    def final_trial_id(self) -> str:
        """The id in its row after the restore."""
        return self.new_trial_id or self.trial_id

    @property
    def runs(self) -> bool:
        """Whether it is resumed or restarted."""
        return self.action in RUN_ACTIONS

    def left(self, reason: str) -> "TrialPlan":
        """Return the entry that leaves it as it is, whatever the flags choose."""
        return msgspec.structs.replace(
            self,
            action=TrialAction.KEEP,
            checkpoint=None,
            iteration=0,
            resources={},
            new_trial_id=None,
            runs_with=None,
            shares_driver=False,
            reason=f"{self.status}, {reason}",
        )

    @property
    def title(self) -> str:
        """Its id, and the parameters in which it differs: `d1fcc_00002 (lr=0.1, batch=32)`."""
        values = ", ".join(f"{name}={text}" for name, text in self.parameters.items())
        return f"{self.trial_id} ({values})" if values else self.trial_id


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """The plan of one experiment. `trials` are in Ray's order: the newest result first.

    Args:
        experiment: URI of the experiment directory, without credentials.
        base: The state that it was made from.
        trainable_name: The recorded name that the trainable must have.
        ignore_tuner: Whether trials are restored from the state alone: the user chose it, or no trial has
            the trainable that `tuner.pkl` names.
        samples_left: Samples that the searcher has not suggested yet; None if unknown.
        continues_search: Whether the run also gets the samples that are left.
        searcher_lost: Why the samples cannot be suggested: their searcher is lost, and the user named no
            other; "" otherwise.
        metric, mode: As recorded; `mode` is `min` or `max`.
        trials: One entry per row.
        more_parameters: How many parameters differ beside those in `trials`.
        warnings: For the user: lost RunConfig, unreadable files, repairs.
        failures: Earlier failures of the trials to run, by trial id, as the ledger had them; None in
            plans of older versions.
        is_part: Whether it is the part of a plan with one trial alone.
        own_tasks: How many of the trials to run have a task of their own, in a whole-experiment run with
            more trials than a DAG run maps: the first ones. None: all.
        waiting: How many trials that the flags choose wait for a later restore (`restore.part`), without
            those that have finished before.
        pause_at: When its window ends (ISO 8601): then nothing is started any more, and what runs is
            paused. "" without one.
    """

    restore_id: str
    experiment: str
    base: StateFile
    trainable_name: str
    choices: PlanChoices
    strategy: Strategy
    strategy_reason: str
    ignore_tuner: bool = False
    samples_left: Count | None
    continues_search: bool = False
    searcher_lost: str = ""
    metric: str | None
    mode: str | None
    trials: tuple[TrialPlan, ...]
    more_parameters: Count = 0
    warnings: tuple[str, ...] = ()
    failures: dict[str, History] | None = None
    is_part: bool = False
    own_tasks: Count | None = None
    waiting: Count = 0
    pause_at: str = ""
    schema: Count = 1

    def __post_init__(self) -> None:
        end = window.parse_end(self.pause_at)
        object.__setattr__(self, "pause_at", end.isoformat() if end is not None else "")
        # they contain text from the experiment
        object.__setattr__(self, "strategy_reason", printable(self.strategy_reason, NOTE_LENGTH))
        object.__setattr__(self, "searcher_lost", printable(self.searcher_lost))
        warnings = tuple(printable(warning, NOTE_LENGTH) for warning in self.warnings)
        object.__setattr__(self, "warnings", warnings)

    @property
    def is_sweep(self) -> bool:
        """Whether it is the run of the sweep's own script, and restores nothing."""
        return names.is_sweep(self.restore_id)

    @property
    def is_whole_experiment(self) -> bool:
        """Whether one runner runs all trials, instead of one runner per trial."""
        return self.strategy is Strategy.WHOLE_EXPERIMENT

    @property
    def units(self) -> list[str]:
        """The units with attempts of their own: each trial to run, or `layout.WHOLE_EXPERIMENT`."""
        if self.is_whole_experiment:
            return [layout.WHOLE_EXPERIMENT] if self.has_work else []
        return [trial.trial_id for trial in self.to_run]

    @property
    def has_work(self) -> bool:
        """Whether any runner is started."""
        return bool(self.to_run) or self.continues_search or self.is_sweep

    @property
    def only_continues_search(self) -> bool:
        """Whether the restore continues the search and changes no recorded trial."""
        return self.continues_search and not self.changes_trials

    @property
    def changes_trials(self) -> bool:
        """Whether any recorded trial changes."""
        return any(trial.action is not TrialAction.KEEP for trial in self.trials)

    @property
    def to_run(self) -> tuple[TrialPlan, ...]:
        """The trials that are resumed or restarted."""
        return tuple(trial for trial in self.trials if trial.runs)

    def runs_again(self, trial: TrialPlan) -> bool:
        """Whether a trial to run has finished before. Then it is chosen by every restore, for ever."""
        return self.choices.flags.keeps_terminated_rows and trial.status is TrialStatus.TERMINATED

    @property
    def left_to_run(self) -> tuple[TrialPlan, ...]:
        """The trials to run that have not finished before."""
        return tuple(trial for trial in self.to_run if not self.runs_again(trial))

    @property
    def with_tasks(self) -> tuple[TrialPlan, ...]:
        """The trials to run that have a task of their own."""
        return self.to_run[: self.own_tasks]

    @property
    def rest(self) -> tuple[TrialPlan, ...]:
        """The trials to run that have none: one task follows all of them, and the samples."""
        return () if self.own_tasks is None else self.to_run[self.own_tasks :]

    @property
    def task_count(self) -> int:
        """How many tasks follow the runs of the restore."""
        return len(self.with_tasks) + bool(self.rest or self.continues_search)

    @property
    def quarantined(self) -> tuple[TrialPlan, ...]:
        """The trials that are kept as they are because they failed too often."""
        return tuple(trial for trial in self.trials if trial.quarantined)

    def trial(self, trial_id: str) -> TrialPlan:
        """Return the entry of one trial (InvalidInputError if the plan has none)."""
        for trial in self.trials:
            if trial.trial_id == trial_id:
                return trial
        raise InvalidInputError(f"The plan of {self.experiment} has no trial {trial_id!r}.")

    def part_of(self, trial: TrialPlan) -> "RestorePlan":
        """Return all that the task of one trial needs, however many others there are."""
        failures = self.failures
        if failures is not None:
            failures = {key: failures[key] for key in (trial.trial_id,) if key in failures}
        choices = self.choices
        if choices.trials:
            choices = replace(choices, trials=(trial.trial_id,))
        return replace(
            self, trials=(trial,), choices=choices, warnings=(), failures=failures, is_part=True
        )

    def to_json(self) -> bytes:
        """Encode; the same plan gives the same bytes."""
        return encode(self)

    @classmethod
    def from_json(cls, body: bytes) -> "RestorePlan":
        """Decode a plan of this version or an older one.

        Raises:
            ValueError: If it is not a plan, or contains a name that leads outside the experiment.
        """
        plan = decode(body, _PLAN)
        _check_names(plan)
        return plan


_PLAN = msgspec.json.Decoder(RestorePlan)


def read_plan(store: ObjectStore, restore_id: str) -> RestorePlan:
    """Read the plan of a restore.

    Raises:
        KeyNotFoundError: If there is none.
        RecordUnreadableError: If the object is not a plan of this restore.
    """
    key = layout.plan_key(restore_id)
    plan = read_record(store, key, RestorePlan.from_json, max_bytes=layout.MAX_PLAN_BYTES)
    if plan.restore_id != restore_id:
        raise RecordUnreadableError(store.uri, key, "it is the plan of another restore")
    # the experiment may have moved, and an attacker who can write a plan may name another experiment
    return replace(plan, experiment=store.uri)


def read_part(store: ObjectStore, restore_id: str, trial_id: str) -> RestorePlan:
    """Read the part of a plan that the task of one trial needs, from its seed.

    It is the whole plan for `layout.WHOLE_EXPERIMENT`, or if an older version has written the plan.

    Raises:
        KeyNotFoundError: If the restore has no plan.
        RecordUnreadableError: If the object is not the part of this trial.
    """
    key = layout.seed_key(restore_id, trial_id)
    part = None
    if trial_id != layout.WHOLE_EXPERIMENT:
        with contextlib.suppress(KeyNotFoundError):
            part = read_record(store, key, _decode_seed, max_bytes=layout.MAX_SNAPSHOT_BYTES)
    if part is None:
        return read_plan(store, restore_id)
    if part.restore_id != restore_id or [trial.trial_id for trial in part.trials] != [trial_id]:
        raise RecordUnreadableError(store.uri, key, "it is the seed of another trial or restore")
    return replace(part, experiment=store.uri)


def _decode_seed(body: bytes) -> RestorePlan | None:
    """Return the part of a plan in a seed; None without one. The row of the trial is not decoded."""
    _, found, text = body.rpartition(f'"{layout.PART_OF_PLAN}": '.encode())
    if not found:
        return None
    try:
        part: str = msgspec.json.decode(text.removesuffix(b"}"), type=str)
    except msgspec.DecodeError as error:  # a ValueError only since msgspec 0.21
        raise ValueError(str(error)) from error
    return RestorePlan.from_json(part.encode())


def check_fits(store: ObjectStore, plan: RestorePlan, state: State) -> None:
    """Refuse a stored plan whose trials are not those of the state that it was made from.

    Raises:
        RecordUnreadableError: If the trials differ.
    """
    if {trial.trial_id for trial in plan.trials} != {trial.trial_id for trial in state.trials}:
        key = layout.plan_key(plan.restore_id)
        raise RecordUnreadableError(store.uri, key, f"its trials are not those of {plan.base.name}")


def _check_names(plan: RestorePlan) -> None:
    """Apply the same rules to a stored plan as to the state that it was made from."""
    is_unstarted = plan.base == NO_STATE_FILE and not plan.trials
    ids = [] if is_unstarted else [plan.base.name]
    segments: list[str | None] = []
    for trial in plan.trials:
        ids += [trial.trial_id, trial.final_trial_id]
        segments += [trial.trial_dir, trial.checkpoint]
    unsafe = [i for i in ids if not names.is_safe_name(i) or i in layout.RUNS_OF_MANY]
    unsafe += [s for s in segments if s is not None and not names.is_segment(s)]
    if unsafe:
        raise ValueError(f"{unsafe[0][:80]!r} leads outside or cannot be a name")
    if plan.is_sweep and not (is_unstarted and plan.is_whole_experiment):
        raise ValueError("it is the plan of a sweep, and has trials or a state")
    if not is_unstarted and not layout.is_state_file(plan.base.name):
        raise ValueError("its state file has the name of another kind of file")
    if not names.is_trainable_name(plan.trainable_name):
        raise ValueError("the name of its trainable is not valid")
    if not is_count(plan.base.size_bytes):
        raise ValueError("the size of its state file is not valid")
    requested = (item for trial in plan.trials for item in trial.resources.items())
    if not all(names.is_resource(name, amount) for name, amount in requested):
        raise ValueError("one of its trials requests an amount of a resource that is not valid")
    if len({trial.trial_id for trial in plan.trials}) != len(plan.trials):
        raise ValueError("two of its trials have the same id")


def describe_quarantine(experiment: str, trial_ids: list[str]) -> str:
    """Name the trials in quarantine, and the command that releases the first one."""
    first, more = trial_ids[0], len(trial_ids) - 1
    named = ", ".join(trial_ids[:_SHOWN_IDS]) + (", …" if len(trial_ids) > _SHOWN_IDS else "")
    others = (
        f", and in the same way each of the other {more}" if more > 1 else ", and so the other one"
    )
    return (
        f"{len(trial_ids)} quarantined ({named}); {release_command(experiment, first)} lets {first} run "
        f"again{others if more else ''}"
    )


def release_command(experiment: str, trial_id: str) -> str:
    """Return the command that releases a trial from quarantine, and what does the same in Airflow."""
    return (
        f"`tune-restore release {quote(experiment)} {quote(trial_id)}` "
        f"(in Airflow: the DAG {ADMIN_DAG})"
    )
