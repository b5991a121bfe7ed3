"""The stoppers of trials that share a driver: each trial has a copy of the experiment's for itself.

So a stopper that ends the experiment by one trial's results, or after some time, ends this trial alone,
as in a runner of its own.
"""

from typing import Any

from ray import cloudpickle
from ray.tune.stopper import NoopStopper, Stopper


class OwnStoppers(Stopper):  # type: ignore[misc]  # Ray is untyped
    """Asks for each trial the copy that only sees this trial."""

    def __init__(self, original: Any) -> None:
        self._is_noop = isinstance(original, NoopStopper)
        self._pickled: bytes = cloudpickle.dumps(original)
        self._copies: dict[str, Any] = {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial must end after this result."""
        return bool(self.of(trial_id)(trial_id, result))

    def stop_all(self) -> bool:
        """Return False: nothing ends all trials."""
        return False

    def of(self, trial_id: str) -> Any:
        """Return the copy of one trial."""
        if trial_id not in self._copies:
            self._copies[trial_id] = cloudpickle.loads(self._pickled)
        return self._copies[trial_id]

    def stops(self, trial_id: str) -> bool:
        """Whether the copy of a trial ends its experiment, which is this trial."""
        return not self._is_noop and bool(self.of(trial_id).stop_all())

    def forget(self, trial_id: str) -> None:
        """Drop the copy of a trial that has ended."""
        self._copies.pop(trial_id, None)
