"""The errors of this package. Messages have three parts: what happened, to what, and what to do next."""


class TuneRestoreError(Exception):
    """Base of all errors of this package. Its text must be clear without a traceback."""


class UnexpectedError(TuneRestoreError):
    """An error of any other class, raised for one experiment; the other experiments go on."""

    def __init__(self, experiment: str, error: str) -> None:
        super().__init__(experiment, error)
        self.experiment = experiment
        self.error = error

    def __str__(self) -> str:
        return (
            f"{self.experiment}: unexpected error: {self.error.rstrip('.')}. Its data may be damaged, or "
            "this package has a bug. Other experiments go on. The traceback is in the log; please report "
            "it."
        )


class InvalidInputError(TuneRestoreError):
    """An input of the user is not valid: a flag, a URL, a trainable, a trial id."""


class KeyNotFoundError(TuneRestoreError):
    """A requested object does not exist."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(uri, key)  # positional, so that the error survives pickling
        self.uri = uri
        self.key = key

    def __str__(self) -> str:
        return f"{self.uri}: {self.key} does not exist."


class KeyExistsError(TuneRestoreError):
    """The key of an exclusive create exists: another process was first."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(uri, key)
        self.uri = uri
        self.key = key

    def __str__(self) -> str:
        return f"{self.uri}: {self.key} already exists."


class StorageError(TuneRestoreError):
    """The store refused a request, timed out, or lacks a required feature."""


class TooLargeError(StorageError):
    """An object is larger than the limit for its kind, so neither Ray nor this package wrote it."""


class CannotBeFollowedError(StorageError):
    """A link leads to itself, or a name is too long for the disk: no file can exist there."""


class LinkRefusedError(StorageError):
    """A link was found where only this package writes, or in the place of a new object."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} is a link. This package neither creates nor follows links there. Nothing was "
            "read or written through it. Find out who created it, then delete it."
        )


class StateUnreadableError(TuneRestoreError):
    """An experiment directory holds no valid state. Nothing was restored."""

    def __init__(self, experiment: str, reason: str) -> None:
        super().__init__(experiment, reason)
        self.experiment = experiment
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.experiment} cannot be read: {self.reason.rstrip('.')}. Nothing was restored."


class RecordUnreadableError(TuneRestoreError):
    """A record of this package is not valid: it is damaged, or another program wrote it."""

    def __init__(self, uri: str, key: str, reason: str) -> None:
        super().__init__(uri, key, reason)
        self.uri = uri
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.uri}: {self.key} is not a valid record: {self.reason.rstrip('.')}. Only this package "
            "should write there. Find out what wrote it, then delete it. It was ignored."
        )


class StateChangedError(TuneRestoreError):
    """The experiment changed after the plan was made."""

    def __init__(self, experiment: str, planned: str, found: str) -> None:
        super().__init__(experiment, planned, found)
        self.experiment = experiment
        self.planned = planned
        self.found = found

    def __str__(self) -> str:
        return (
            f"{self.experiment} changed since it was planned: the plan was made from {self.planned}, and "
            f"the newest state is now {self.found}. Nothing was overwritten. Check whether its own "
            "driver runs again; if not, make a new plan."
        )


class ExperimentRunningError(TuneRestoreError):
    """The experiment is running: it was written to less than `stale_after` ago."""

    def __init__(self, experiment: str, reason: str) -> None:
        super().__init__(experiment, reason)
        self.experiment = experiment
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.experiment} is running: {self.reason.rstrip('.')}. "
            "If you are sure that its driver is dead, set stale_after=0 (--stale-after 0)."
        )


class LeaseHeldError(TuneRestoreError):
    """Another restore of the same experiment is running."""

    def __init__(self, experiment: str, restore_id: str, holder: str, seconds_ago: float) -> None:
        super().__init__(experiment, restore_id, holder, seconds_ago)
        self.experiment = experiment
        self.restore_id = restore_id
        self.holder = holder
        self.seconds_ago = seconds_ago

    def __str__(self) -> str:
        return (
            f"{self.experiment} is being restored by {self.holder} (restore {self.restore_id}, "
            f"last heartbeat {self.seconds_ago:.0f} s ago). Nothing was started. "
            "Wait until it ends, or until its lease expires."
        )


class LeaseLostError(TuneRestoreError):
    """A newer restore holds the lease, or this one has ended. It stopped without writing."""

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
    """Another try of the same task started a newer attempt of the trial; this attempt stopped."""

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
            f"Attempt {self.attempt} of this try has stopped. Nothing is lost; follow the other try."
        )


class UncommittableError(TuneRestoreError):
    """A file in the root sorts after every possible name of a commit. Nothing was committed."""

    def __init__(self, experiment: str, newest: str, why: str) -> None:
        super().__init__(experiment, newest, why)
        self.experiment = experiment
        self.newest = newest
        self.why = why

    def __str__(self) -> str:
        return (
            f"{self.experiment} cannot be restored: {self.newest!a} sorts after its other state files, "
            f"so Ray reads it as the newest state, and {self.why.rstrip('.')}. Nothing was committed. "
            "If Ray did not write it, delete it; then make a new plan."
        )


class CommitUndoneError(TuneRestoreError):
    """`tune-restore undo` undid the commit, so it is not done again."""

    def __init__(self, experiment: str, restore_id: str, undone_at: str) -> None:
        super().__init__(experiment, restore_id, undone_at)
        self.experiment = experiment
        self.restore_id = restore_id
        self.undone_at = undone_at

    def __str__(self) -> str:
        return (
            f"The commit of restore {self.restore_id} was undone at {self.undone_at}, so it is not done "
            f"again. To restore {self.experiment}, make a new plan."
        )


class TrialFailedError(TuneRestoreError):
    """A resumed trial failed again. Its progress is kept and will be committed.

    `cause` is one of `failures.Cause`. `final` is the reason why a retry would fail in the same way; ""
    if a retry may succeed.
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
        cause = f" ({self.cause})" if self.cause != "unknown" else ""
        final = f" {self.final.rstrip('.')}." if self.final else ""
        return (
            f"Trial {self.trial_id} of {self.experiment} failed again{cause}: {self.reason.rstrip('.')}."
            f"{final} Its progress is kept and will be committed."
        )


class RunnerError(TuneRestoreError):
    """A runner failed, or exited without recording an outcome."""


class RunnerRefusedError(RunnerError):
    """A runner was refused or fenced. A retry would end in the same way."""


class NoRoomError(RunnerError):
    """No node can hold the request of a trial, and no larger node came in time. A snapshot is saved."""


class RunnerDiedError(RunnerError):
    """A runner exited without recording an outcome. `cause` is one of `failures.Cause`."""

    def __init__(self, experiment: str, trial_id: str, reason: str, cause: str) -> None:
        super().__init__(experiment, trial_id, reason, cause)
        self.experiment = experiment
        self.trial_id = trial_id
        self.reason = reason
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"The runner of {_name_trial(self.trial_id)} of {self.experiment} exited without recording "
            f"an outcome ({self.cause}). A retry resumes from its newest snapshot. {self.reason}"
        )


class PodLostError(RunnerDiedError):
    """Kubernetes removed the pod of a runner, or it exited without recording an outcome."""

    def __str__(self) -> str:
        what = _name_trial(self.trial_id)
        return (
            f"The pod of {what} of {self.experiment} was lost ({self.cause}): {self.reason.rstrip('.')}. "
            "A retry resumes from its newest snapshot."
        )


class KubernetesConnectionError(TuneRestoreError):
    """A connection to Kubernetes is not valid: its kubeconfig is missing, wrong or incomplete."""


class RayClusterError(TuneRestoreError):
    """A Ray cluster is not reachable, or its answer is not valid. A later try may succeed."""


def _name_trial(trial_id: str) -> str:
    """Return the words for one trial or for all trials (`layout.WHOLE_EXPERIMENT`) in a sentence."""
    return "all trials" if trial_id == "*" else f"trial {trial_id}"
