"""Every error this package raises on purpose: what happened, to what, and what to do now."""


class TuneRestoreError(Exception):
    """Base of all our errors. Its text is meant to be read at 3 a.m. without a traceback."""


class UnexpectedError(TuneRestoreError):
    """Something that we did not foresee went wrong with one experiment; the others go on."""

    def __init__(self, experiment: str, error: str) -> None:
        super().__init__(experiment, error)
        self.experiment = experiment
        self.error = error

    def __str__(self) -> str:
        return (
            f"{self.experiment}: {self.error}, which nobody foresaw: damaged data, or a fault of this "
            "package. Other experiments go on. The traceback is in this log; please report it."
        )


class InvalidInputError(TuneRestoreError):
    """Something the user gave us cannot be used: a flag, a URL, a trainable, a trial id."""


class KeyNotFoundError(TuneRestoreError):
    """An object that was asked for does not exist."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(uri, key)  # positional, so that the error survives pickling
        self.uri = uri
        self.key = key

    def __str__(self) -> str:
        return f"{self.uri}: {self.key} does not exist."


class KeyExistsError(TuneRestoreError):
    """An object that was to be created exclusively exists already: somebody else was first."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(uri, key)
        self.uri = uri
        self.key = key

    def __str__(self) -> str:
        return f"{self.uri}: {self.key} exists already."


class StorageError(TuneRestoreError):
    """The store refused, timed out or lacks something we depend on."""


class TooLargeError(StorageError):
    """An object is larger than what is read of its kind: it is none of ours or Ray's."""


class CannotBeFollowedError(StorageError):
    """A link leads to itself, or a name is too long for a disk: nothing can be there. No store fails."""


class LinkRefusedError(StorageError):
    """A link stands where only this package writes, or where a new object was to be made."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} is a link. This package makes none and follows none there; nothing was read or "
            "written through it. Find out who made it, then delete it."
        )


class StateUnreadableError(TuneRestoreError):
    """An experiment directory holds no state that can be understood. Nothing was restored."""

    def __init__(self, experiment: str, reason: str) -> None:
        super().__init__(experiment, reason)
        self.experiment = experiment
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.experiment} cannot be read: {self.reason.rstrip('.')}. Nothing was restored."


class RecordUnreadableError(TuneRestoreError):
    """One of our own records cannot be understood: damaged, or written by somebody else."""

    def __init__(self, uri: str, key: str, reason: str) -> None:
        super().__init__(uri, key, reason)
        self.uri = uri
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.uri}: {self.key} cannot be understood: {self.reason.rstrip('.')}. Only this package "
            "writes there; find out who else did, then delete it. Nothing was done with it."
        )


class StateChangedError(TuneRestoreError):
    """The experiment was written to after the plan was made; the plan no longer fits."""

    def __init__(self, experiment: str, planned: str, found: str) -> None:
        super().__init__(experiment, planned, found)
        self.experiment = experiment
        self.planned = planned
        self.found = found

    def __str__(self) -> str:
        return (
            f"{self.experiment} changed since it was planned: the plan was made from "
            f"{self.planned}, the newest state is now {self.found}. Nothing was overwritten; "
            "is its own driver running again? Plan it anew."
        )


class ExperimentRunningError(TuneRestoreError):
    """The experiment is alive: it was written to less than `stale_after` ago."""

    def __init__(self, experiment: str, reason: str) -> None:
        super().__init__(experiment, reason)
        self.experiment = experiment
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.experiment} is running: {self.reason.rstrip('.')}. "
            "If you know its driver is dead, say so with stale_after=0 (--stale-after 0)."
        )


class LeaseHeldError(TuneRestoreError):
    """Another restore of the same experiment is at work."""

    def __init__(self, experiment: str, restore_id: str, holder: str, seconds_ago: float) -> None:
        super().__init__(experiment, restore_id, holder, seconds_ago)
        self.experiment = experiment
        self.restore_id = restore_id
        self.holder = holder
        self.seconds_ago = seconds_ago

    def __str__(self) -> str:
        return (
            f"{self.experiment} is being restored by {self.holder} (restore {self.restore_id}, "
            f"last heard of {self.seconds_ago:.0f} s ago). Nothing was started; "
            "wait for it to end, or for its lease to run out."
        )


class LeaseLostError(TuneRestoreError):
    """A newer restore has taken over, or this one has ended; it stops without writing."""

    def __init__(self, experiment: str, restore_id: str, newer: str) -> None:
        super().__init__(experiment, restore_id, newer)
        self.experiment = experiment
        self.restore_id = restore_id
        self.newer = newer

    def __str__(self) -> str:
        return (
            f"Restore {self.restore_id} no longer holds the lease of {self.experiment} "
            f"({self.newer}). It stopped without writing anything."
        )


class OvertakenError(TuneRestoreError):
    """Another try of the same task has started a newer attempt of the trial; this one has stopped."""

    def __init__(self, experiment: str, trial_id: str, attempt: int, newer: int) -> None:
        super().__init__(experiment, trial_id, attempt, newer)
        self.experiment = experiment
        self.trial_id = trial_id
        self.attempt = attempt
        self.newer = newer

    def __str__(self) -> str:
        what = _name_trial(self.trial_id)
        return (
            f"Another try of this task runs {what} of {self.experiment}, as attempt {self.newer}. "
            f"Attempt {self.attempt} of this try has stopped; nothing is lost."
        )


class UncommittableError(TuneRestoreError):
    """The name of a file in the experiment's root leaves none for a commit. Nothing was committed."""

    def __init__(self, experiment: str, newest: str, why: str) -> None:
        super().__init__(experiment, newest, why)
        self.experiment = experiment
        self.newest = newest
        self.why = why

    def __str__(self) -> str:
        return (
            f"{self.experiment} cannot be restored: {self.newest!a} sorts after its other state files, "
            f"so that Ray takes it for the newest, and {self.why.rstrip('.')}. Nothing was committed. "
            "If it is none of Ray's, delete it; then plan again."
        )


class CommitUndoneError(TuneRestoreError):
    """The commit was taken back by `tune-restore undo`. It is not put back."""

    def __init__(self, experiment: str, restore_id: str, undone_at: str) -> None:
        super().__init__(experiment, restore_id, undone_at)
        self.experiment = experiment
        self.restore_id = restore_id
        self.undone_at = undone_at

    def __str__(self) -> str:
        return (
            f"The commit of restore {self.restore_id} was undone at {self.undone_at}; it is not put "
            f"back. To restore {self.experiment} again, make a new plan."
        )


class TrialFailedError(TuneRestoreError):
    """A resumed trial failed again. Its progress is kept and will be committed.

    `cause` is one of `failures.Cause`; `final` says why a retry would fail in the same way, "" if it may
    not.
    """

    def __init__(
        self, experiment: str, trial_id: str, reason: str, cause: str = "unknown", final: str = ""
    ) -> None:
        super().__init__(experiment, trial_id, reason, cause, final)
        self.experiment = experiment
        self.trial_id = trial_id
        self.reason = reason
        self.cause = cause
        self.final = final

    def __str__(self) -> str:
        told = f" ({self.cause})" if self.cause != "unknown" else ""
        final = f" {self.final.rstrip('.')}." if self.final else ""
        return (
            f"Trial {self.trial_id} of {self.experiment} failed again{told}: {self.reason.rstrip('.')}."
            f"{final} Its progress is kept and will be committed."
        )


class RunnerError(TuneRestoreError):
    """A runner could not do its work, or ended without saying how."""


class RunnerRefusedError(RunnerError):
    """A runner was refused or fenced. A retry would end in the same way."""


class NoRoomError(RunnerError):
    """No node can hold what a trial asks for, and none came while it waited. Its snapshot is saved."""


class RunnerDiedError(RunnerError):
    """A runner ended without saying how. `cause` is one of `failures.Cause`."""

    def __init__(self, experiment: str, trial_id: str, reason: str, cause: str) -> None:
        super().__init__(experiment, trial_id, reason, cause)
        self.experiment = experiment
        self.trial_id = trial_id
        self.reason = reason
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"The runner of {_name_trial(self.trial_id)} of {self.experiment} ended without saying how "
            f"({self.cause}). A retry goes on from its newest snapshot. {self.reason}"
        )


class PodLostError(RunnerDiedError):
    """Kubernetes took a runner's pod away, or it ended without saying how."""

    def __str__(self) -> str:
        what = _name_trial(self.trial_id)
        return (
            f"The pod of {what} of {self.experiment} was lost ({self.cause}): {self.reason.rstrip('.')}. "
            "A retry goes on from its newest snapshot."
        )


class KubernetesConnectionError(TuneRestoreError):
    """A connection to Kubernetes cannot be used: its kubeconfig is missing or wrong, or half written."""


class RayClusterError(TuneRestoreError):
    """A Ray cluster is not reachable, or its answer is not valid. A later try may succeed."""


def _name_trial(trial_id: str) -> str:
    """Name a trial, or all of them (`layout.WHOLE_EXPERIMENT`), in the middle of a sentence."""
    return "all trials" if trial_id == "*" else f"trial {trial_id}"
