"""The searcher of a run: its saved state, the results it missed, and errors that it raises."""

import copy
import json
import logging
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.protocol.request import RunnerRequest, TrialAction
from airflow_tune_restore.storage.base import ObjectStore

_FINISHED = ("TERMINATED", "ERROR")

logger = logging.getLogger(__name__)


def fetch_newest(store: ObjectStore, target: Path) -> None:
    """Fetch the newest searcher state of the experiment itself, into a directory."""
    session = newest_session(store)
    for entry in store.list_dir() if session else []:
        if layout.is_searcher_state(entry.name) and layout.session_of(entry.name) == session:
            (target / entry.name).write_bytes(
                store.get(entry.name, max_bytes=layout.MAX_STATE_BYTES)
            )


def fetch_saved(store: ObjectStore, directory: str, number: int, target: Path) -> None:
    """Fetch what an earlier attempt saved with the snapshot of this number, into a directory."""
    for entry in store.list_dir(directory):
        if entry.name.startswith(layout.numbered(number)):
            name = entry.name.removeprefix(layout.numbered(number))
            key = f"{directory}/{entry.name}"
            (target / name).write_bytes(store.get(key, max_bytes=layout.MAX_STATE_BYTES))


def newest_session(store: ObjectStore) -> str | None:
    """Return the driver session of the newest searcher state; Ray takes the largest name, too."""
    sessions = [
        layout.session_of(entry.name) or ""
        for entry in store.list_dir()
        if not entry.is_dir and layout.is_searcher_state(entry.name)
    ]
    return max(sessions, default=None)


class Shield:
    """Wraps a searcher, so that an error about one result does not end the run.

    In Ray, an exception of a searcher ends the run, and a limiter that was removing the trial
    (`ConcurrencyLimiter.on_trial_complete`, 2.60) would wait for this trial for ever. So this is the
    innermost wrapper, and it reports a refused trial once more, as a failed one. Values that are NaN or
    infinite are not reported, because a searcher might learn from them. Exceptions of `suggest` are not
    caught: without suggestions the run cannot go on.

    `left_out` has the ids of trials whose results were not reported, or refused.
    """

    def __init__(self, searcher: Any) -> None:
        self._searcher = searcher
        self.left_out: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._searcher, name)

    def __reduce__(self) -> Any:
        """Pickle the searcher alone, so that loading it does not need this package."""
        return copy.copy, (self._searcher,)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report a result."""
        self._tell(trial_id, result, lambda: self._searcher.on_trial_result(trial_id, result))

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,  # noqa: FBT001, FBT002  as Ray declares it
    ) -> None:
        """Report an end; a refused one as a failure, so that no limiter waits for the trial."""

        def complete(result: dict[str, Any] | None, *, error: bool) -> bool:
            return self._tell(
                trial_id,
                result or {},
                lambda: self._searcher.on_trial_complete(trial_id, result=result, error=error),
            )

        if not complete(result, error=error):
            complete(None, error=True)

    def add_evaluated_point(self, trial_id: str, parameters: dict[str, Any], value: float) -> None:
        """Report the result of a trial that the searcher did not suggest."""
        self._tell(
            trial_id,
            {self._searcher.metric: value},
            lambda: self._searcher.add_evaluated_point(parameters, value),
        )

    def _tell(self, trial_id: str, result: Mapping[str, Any], tell: Callable[[], object]) -> bool:
        """Report finite values; return whether the searcher accepted them."""
        metric = self._searcher.metric
        wild = [
            f"{name} is {result[name]}"
            for name in (metric if isinstance(metric, list) else [metric])
            if _is_wild(result.get(name))
        ]
        if wild:
            self._leave_out(trial_id, ", ".join(wild))
            return False
        try:
            tell()
        except Exception as error:  # noqa: BLE001  no exception about one point may end the run
            self._leave_out(trial_id, f"{type(error).__name__}: {error}".removesuffix(": "))
            return False
        return True

    def _leave_out(self, trial_id: str, why: str) -> None:
        if trial_id not in self.left_out:
            logger.warning(
                "%s does not learn from trial %s and goes on without it: %s",
                *(type(self._searcher).__name__, trial_id, why),
            )
        self.left_out.add(trial_id)


def exhausted() -> Any:
    """Return a searcher that suggests nothing."""
    from ray.tune.search import BasicVariantGenerator

    search_alg = BasicVariantGenerator()
    search_alg.set_finished()
    return search_alg


def shield(search_alg: Any) -> Any:
    """Wrap the searcher in a search algorithm into a `Shield`; return the algorithm for the controller.

    Ray's own BasicVariantGenerator accepts all results, so it is not wrapped.
    """
    from ray.tune.search import BasicVariantGenerator

    if isinstance(search_alg, BasicVariantGenerator | None):
        return search_alg
    inner = innermost(search_alg)
    if inner is search_alg:
        return Shield(search_alg)
    if not isinstance(inner, Shield):
        owner = search_alg
        while owner.searcher is not inner:
            owner = owner.searcher
        owner.searcher = Shield(inner)
    return search_alg


def _is_wild(value: Any) -> bool:
    """Whether a metric is NaN or infinite. Integers of any size are neither."""
    return isinstance(value, Real) and not isinstance(value, Integral) and not math.isfinite(value)


def innermost(search_alg: Any) -> Any:
    """Return the searcher itself, without generator, limiters and repeaters."""
    while hasattr(search_alg, "searcher"):
        search_alg = search_alg.searcher
    return search_alg


def wrappers(searcher: Any) -> list[str]:
    """Return the class names of the wrappers around a searcher, the outermost first."""
    if not hasattr(searcher, "searcher"):
        return []
    return [type(searcher).__name__, *wrappers(searcher.searcher)]


def report_missed_results(
    store: ObjectStore,
    search_alg: Any,
    trials: list[Any],
    request_for: Callable[[Any], RunnerRequest],
) -> None:
    """Report to a restored searcher the results of trials since its state was saved.

    Ray saves it with the experiment state of the same session, so it has the statuses in that state.
    Trials that run now report to it themselves; the others were restored one by one, without it.
    """
    session = newest_session(store)
    known = _statuses(store, session) if session else None
    if known is None:
        return
    reported, present = set(), set()
    for trial in trials:
        action = request_for(trial).action
        if action == TrialAction.RESTART:
            continue  # a new id takes its row
        present.add(trial.trial_id)
        if action == TrialAction.RESUME:
            continue
        if _report(search_alg, trial, known.get(trial.trial_id)):
            reported.add(trial.trial_id)
    for trial_id, status in known.items():
        if trial_id not in present and status not in _FINISHED:
            # restarted under another id: a limiter must not wait for it
            search_alg.on_trial_complete(trial_id, result=None, error=True)
    reported -= getattr(innermost(search_alg), "left_out", set())
    if reported:
        missed = counted(len(reported), "trial")
        logger.info("The searcher got the results of %s that it had missed.", missed)


def _report(search_alg: Any, trial: Any, known_status: str | None) -> bool:
    """Report one trial; return whether it has a result to learn from."""
    from ray._private.dict import flatten_dict

    is_well = trial.status == "TERMINATED"
    if known_status is not None and known_status not in _FINISHED:
        result = flatten_dict(trial.last_result) if is_well else None
        search_alg.on_trial_complete(trial.trial_id, result=result, error=not is_well)
        return bool(is_well)
    if known_status != "TERMINATED" and is_well:
        return _add_point(search_alg, trial)
    return False


def _add_point(search_alg: Any, trial: Any) -> bool:
    """Report a trial that failed for the searcher, or that is new to it: a restarted one."""
    from ray._private.dict import flatten_dict

    base = innermost(search_alg)
    metric = getattr(search_alg, "metric", None)
    value = flatten_dict(trial.last_result).get(metric) if isinstance(metric, str) else None
    if not isinstance(base, Shield) or not isinstance(value, int | float):
        return False  # a grid or random search, which does not learn
    base.add_evaluated_point(trial.trial_id, dict(trial.evaluated_params), value)
    return True


def _statuses(store: ObjectStore, session: str) -> Mapping[str, str] | None:
    """Return the statuses in the experiment state of a session; None without such a state."""
    name = f"{layout.STATE_PREFIX}{session}{layout.STATE_SUFFIX}"
    try:
        state = json.loads(store.get(name, max_bytes=layout.MAX_STATE_BYTES))
        trials = [json.loads(row[0]) for row in state["trial_data"]]
        return {trial["trial_id"]: trial["status"] for trial in trials}
    except (KeyNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        logger.warning(
            "The state of session %s is missing: the searcher gets no earlier results.", session
        )
        return None
