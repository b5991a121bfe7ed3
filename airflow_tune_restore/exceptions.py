"""The errors of this package. Messages have three parts: what happened, to what, and what to do next."""

import json
from dataclasses import dataclass
from shlex import quote


class TuneRestoreError(Exception):
    """Base of all errors of this package. Its text must be clear without a traceback."""

    def __post_init__(self) -> None:
        """Make the fields of a subclass its arguments, so that it survives pickling."""
        self.args = tuple(vars(self).values())


@dataclass(eq=False, repr=False)
class _ObjectError(TuneRestoreError):
    uri: str
    key: str


@dataclass(eq=False, repr=False)
class _ExperimentError(TuneRestoreError):
    experiment: str
    reason: str


@dataclass(eq=False, repr=False)
class UnexpectedError(TuneRestoreError):
    """An error of any other class, raised for one experiment; the other experiments go on."""

    experiment: str
    error: str

    def __str__(self) -> str:
        return (
            f"{self.experiment}: unexpected error: {self.error.rstrip('.')}. Its data may be damaged, or "
            "this package has a bug. Other experiments go on. The traceback is in the log; please report "
            "it."
        )


class InvalidInputError(TuneRestoreError):
    """An input of the user is not valid: a flag, a URL, a trainable, a trial id."""


class UnknownTrialError(InvalidInputError):
    """The experiment has no trial of an id that the user named."""


class TrainableMisfitError(InvalidInputError):
    """The experiment was made with another trainable: its name differs, or evidence is against it.

    It is not a failure of the experiment: below a shared prefix, each trainable leaves the sweeps of the
    others alone.
    """


@dataclass(eq=False, repr=False)
class UnknownTrainableError(InvalidInputError):
    """No trainable is given for an experiment. It is left alone, and the others are restored.

    Args:
        name: The recorded name of its trainable; "" if it is unknown.
        problem: Why the recipe that its sweep wrote cannot be used; "" without one.
        key: The key of the line that gives one: the name, or a glob that matches this experiment.
    """

    experiment: str
    name: str
    problem: str = ""
    key: str = ""

    def __str__(self) -> str:
        key, name = self.key or self.name or self.experiment, self.name or "it"
        line = f'{json.dumps(key, ensure_ascii=False)}: "package.module:attribute",'
        option = f"--trainable {quote(f'{key}=package.module:attribute')}"
        add = f"dd the line {line} to trainable={{…}} (in the shell: {option})"
        if self.problem:
            allow = f"Correct it, or allow in recipes= (--recipes) what it names. For {name} without it, "
            return f"{self.experiment}: {self.problem}. {allow}a{add}."
        return f"{self.experiment}: no trainable is given for {name}. A{add}."


class KeyNotFoundError(_ObjectError):
    """A requested object does not exist."""

    def __str__(self) -> str:
        return f"{self.uri}: {self.key} does not exist."


class KeyExistsError(_ObjectError):
    """The key of an exclusive create exists: another process was first."""

    def __str__(self) -> str:
        return f"{self.uri}: {self.key} already exists."


class StorageError(TuneRestoreError):
    """The store refused a request, timed out, or lacks a required feature."""


class TooLargeError(StorageError):
    """An object is larger than the limit for its kind, so neither Ray nor this package wrote it."""


class CannotBeFollowedError(StorageError):
    """A link leads to itself, or a name is too long for the disk: no file can exist there."""


@dataclass(eq=False, repr=False)
class LinkRefusedError(StorageError):
    """A link was found where only this package writes, or in the place of a new object."""

    path: str

    def __str__(self) -> str:
        return (
            f"{self.path} is a link. This package neither creates nor follows links there. Nothing was "
            "read or written through it. Find out who created it, then delete it."
        )


class StateUnreadableError(_ExperimentError):
    """An experiment directory holds no valid state. Nothing was restored."""

    def __str__(self) -> str:
        return f"{self.experiment} cannot be read: {self.reason.rstrip('.')}. Nothing was restored."


@dataclass(eq=False, repr=False)
class RecordUnreadableError(_ObjectError):
    """A record of this package is not valid: it is damaged, or another program wrote it."""

    reason: str

    def __str__(self) -> str:
        return (
            f"{self.uri}: {self.key} is not a valid record: {self.reason.rstrip('.')}. Only this package "
            "should write there. Find out what wrote it, then delete it."
        )


@dataclass(eq=False, repr=False)
class StateChangedError(TuneRestoreError):
    """The experiment changed after the plan was made."""

    experiment: str
    planned: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.experiment} changed since it was planned: the plan was made from {self.planned}, and "
            f"the newest state is now {self.found}. Nothing was overwritten. Check whether its own "
            "driver runs again; if not, make a new plan."
        )


@dataclass(eq=False, repr=False)
class RestoredMeanwhileError(StateChangedError):
    """Another restore committed after the plan was made."""

    restore_id: str

    def __str__(self) -> str:
        return (
            f"{self.experiment} was restored meanwhile: the plan was made from {self.planned}, and "
            f"restore {self.restore_id} committed {self.found} since. Nothing was started. If something "
            "is left to do, make a new plan."
        )


class ExperimentRunningError(_ExperimentError):
    """The experiment is running: it was written to less than `stale_after` ago."""

    def __str__(self) -> str:
        return (
            f"{self.experiment} is running: {self.reason.rstrip('.')}. "
            "If you are sure that its driver is dead, set stale_after=0 (--stale-after 0)."
        )


@dataclass(eq=False, repr=False)
class LeaseHeldError(TuneRestoreError):
    """Another restore of the same experiment is running.

    `taken` is when it took the lease, in words. `found` is the answer of Airflow about it; "" if Airflow
    was not asked.
    """

    experiment: str
    restore_id: str
    holder: str
    seconds_ago: float
    taken: str = "at an unknown time"
    found: str = ""

    def __str__(self) -> str:
        is_sweep = self.restore_id.startswith("sweep-")  # names.SWEEP_PREFIX
        return (
            f"{self.experiment} is {'the running sweep of' if is_sweep else 'being restored by'} "
            f"{self.holder} (restore {self.restore_id}, lease taken {self.taken}, last heartbeat "
            f"{self.seconds_ago:.0f} s ago). Nothing was started. Wait until it ends, or until its lease "
            f"expires.{self.found and f' {self.found}.'}"
        )


@dataclass(eq=False, repr=False)
class LeaseLostError(TuneRestoreError):
    """A newer restore holds the lease, or this one has ended. It stopped without writing."""

    experiment: str
    restore_id: str
    newer: str

    def __str__(self) -> str:
        return (
            f"Restore {self.restore_id} no longer holds the lease of {self.experiment} "
            f"({self.newer}). It writes nothing more."
        )


@dataclass(eq=False, repr=False)
class RestoreEndedError(LeaseLostError):
    """A task of a restore that has ended was run again. It started nothing.

    `newer` is how the restore ended. `next_step` names the task to clear.
    """

    next_step: str

    def __str__(self) -> str:
        return (
            f"Restore {self.restore_id} of {self.experiment} has ended: {self.newer}. "
            f"Nothing was started. {self.next_step}"
        )


@dataclass(eq=False, repr=False)
class OvertakenError(TuneRestoreError):
    """Another try of the same task started a newer attempt of the trial; this attempt stopped."""

    experiment: str
    trial_id: str
    attempt: int
    newer: int

    def __str__(self) -> str:
        what = name_trial(self.trial_id)
        return (
            f"Another try of this task runs {what} of {self.experiment}, as attempt {self.newer}. "
            f"Attempt {self.attempt} of this try has stopped. Nothing is lost; follow the other try."
        )


@dataclass(eq=False, repr=False)
class UncommittableError(TuneRestoreError):
    """A file in the root sorts after every possible name of a commit. Nothing was committed."""

    experiment: str
    newest: str
    why: str

    def __str__(self) -> str:
        return (
            f"{self.experiment} cannot be restored: {self.newest!a} sorts after its other state files, "
            f"so Ray reads it as the newest state, and {self.why.rstrip('.')}. Nothing was committed. "
            "If Ray did not write it, delete it; then make a new plan."
        )


@dataclass(eq=False, repr=False)
class CommitUndoneError(TuneRestoreError):
    """`tune-restore undo` undid the commit, so it is not done again."""

    experiment: str
    restore_id: str
    undone_at: str

    def __str__(self) -> str:
        return (
            f"The commit of restore {self.restore_id} was undone at {self.undone_at}, so it is not done "
            f"again. To restore {self.experiment}, make a new plan."
        )


@dataclass(eq=False, repr=False)
class TrialFailedError(TuneRestoreError):
    """A resumed trial failed again. Its progress is kept and will be committed.

    `reason` is what it raised, where, and after which iteration. `cause` is one of `failures.Cause`.
    `final` is the reason why a retry would fail in the same way; "" if a retry may succeed. `kept` is
    what the commit does if it is not retried.
    """

    experiment: str
    trial_id: str
    reason: str
    cause: str = "unknown"
    final: str = ""
    kept: str = ""
    attempt: int = 1

    def __str__(self) -> str:
        cause = f" ({self.cause})" if self.cause != "unknown" else ""
        why = f"; it is not retried, because {self.final}: {self.kept}" if self.final else ""
        return (
            f"Trial {self.trial_id} of {self.experiment} failed again{cause}: {self.reason.rstrip('.')}, "
            f"in attempt {self.attempt}{why}."
        )


@dataclass(eq=False, repr=False)
class RestFailedError(TuneRestoreError):
    """Trials of a whole-experiment run failed that one task follows together; the run has ended them.

    `reasons` names the first ones, and why. `count` of `whole` have not finished.
    """

    experiment: str
    count: int
    whole: int
    reasons: str

    def __str__(self) -> str:
        return (
            f"{self.count} of the {self.whole} trials of {self.experiment} that this task follows did "
            f"not finish: {self.reasons.rstrip('.')}. The commit keeps their progress, and the next "
            "restore with resume_errored=True resumes them."
        )


@dataclass(eq=False, repr=False)
class TrialStoppedError(TuneRestoreError):
    """A trial was stopped before its end, or its runner broke off. Its snapshot is saved."""

    experiment: str
    trial_id: str
    reason: str
    attempt: int

    def __str__(self) -> str:
        return (
            f"Trial {self.trial_id} of {self.experiment} {self.reason.rstrip('.')}, in attempt "
            f"{self.attempt}; its snapshot is saved."
        )


class RunnerError(TuneRestoreError):
    """A runner failed, or exited without recording an outcome."""


class RunnerRefusedError(RunnerError):
    """A runner was refused or fenced. A retry would end in the same way."""


class NoRoomError(RunnerError):
    """No node can hold the request of a trial, and no larger node came in time. A snapshot is saved."""


@dataclass(eq=False, repr=False)
class RunnerDiedError(RunnerError):
    """A runner exited without recording an outcome. `cause` is one of `failures.Cause`."""

    experiment: str
    trial_id: str
    reason: str
    cause: str
    attempt: int = 1

    def __str__(self) -> str:
        return (
            f"The runner of {name_trial(self.trial_id)} of {self.experiment} exited without recording "
            f"an outcome ({self.cause}), in attempt {self.attempt}: {self.reason.rstrip('.')}."
        )


class PodLostError(RunnerDiedError):
    """Kubernetes removed the pod of a runner, or it exited without recording an outcome."""

    def __str__(self) -> str:
        what = name_trial(self.trial_id)
        return (
            f"The pod of {what} of {self.experiment} was lost ({self.cause}), in attempt "
            f"{self.attempt}: {self.reason.rstrip('.')}."
        )


class KubernetesConnectionError(TuneRestoreError):
    """A connection to Kubernetes is not valid: its kubeconfig is wrong, or its cluster cannot be used."""


class RayClusterError(TuneRestoreError):
    """A Ray cluster is not reachable, or its answer is not valid. A later try may succeed."""


def name_trial(trial_id: str) -> str:
    """Return the words for a trial, or for a unit that is none (`layout.RUNS_OF_MANY`), in a sentence."""
    return {"*": "all trials", "**": "the shared driver"}.get(trial_id, f"trial {trial_id}")
