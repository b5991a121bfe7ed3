"""Release trials from quarantine: their failures so far no longer count."""

import secrets
from collections.abc import Sequence

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError, LeaseHeldError
from airflow_tune_restore.experiments.read import StateReader, read_experiment
from airflow_tune_restore.experiments.state import KEEP_UNTERMINATED
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.kept_lease import keep_lease, let_rest
from airflow_tune_restore.protocol.lease_objects import AskHolder
from airflow_tune_restore.protocol.lease_watch import OnWait, log_wait
from airflow_tune_restore.protocol.printable import counted
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.history import KEPT, History
from airflow_tune_restore.restore.ledger import read_ledger, write_ledger
from airflow_tune_restore.restore.start import release_unstarted
from airflow_tune_restore.storage.base import ObjectStore

TTL_SECONDS = 30.0


def release_trials(
    store: ObjectStore,
    trial_ids: Sequence[str],
    *,
    holder: str,
    on_wait: OnWait = log_wait,
    ask_holder: AskHolder | None = None,
) -> dict[str, History]:
    """Let trials run again: all of them, or none. First commit what a restore that died left behind.

    `holder` is who takes the lease, for people. `on_wait` shows the watch of a restore that looks dead.
    `ask_holder` returns whether a restore that holds the lease is known to have ended.
    Returns the history of each trial by its id; its `released` holds the failures that no longer count.

    Raises:
        InvalidInputError: If a trial does not exist, or is not quarantined.
        LeaseHeldError: If a restore is running.
    """
    _check(store, trial_ids)
    restore_id = f"release-{secrets.token_hex(4)}"
    watch = lease.refuse_if_alive(store, restore_id, ask_holder=ask_holder)
    try:
        commit_abandoned(
            store,
            restore_id=restore_id,
            holder=holder,
            ttl_seconds=TTL_SECONDS,
            watch=watch,
            on_wait=on_wait,
        )
        with keep_lease(store, restore_id) as held_store:
            let_rest(store)
            ledger, _ = read_ledger(store)
            at = store.now().isoformat()
            released = {
                trial_id: _released(ledger.trials.get(trial_id, History()), at)
                for trial_id in trial_ids
            }
            trials = {**ledger.trials, **released}
            write_ledger(held_store, msgspec.structs.replace(ledger, trials=trials))
    except LeaseHeldError:
        raise
    except Exception:
        release_unstarted(store, restore_id)
        raise
    release_unstarted(store, restore_id)
    return released


def _released(history: History, at: str) -> History:
    return History(released=(history.released + history.failures)[-KEPT:], released_at=at)


def _check(store: ObjectStore, trial_ids: Sequence[str]) -> None:
    ledger, warning = read_ledger(store)
    read_experiment(store, read_state=StateReader(KEEP_UNTERMINATED)).check_has(trial_ids)
    for trial_id in trial_ids:
        if not ledger.trials.get(trial_id, History()).failures:
            raise InvalidInputError(
                f"Trial {trial_id} of {store.uri} is not quarantined: it has no failed attempt that "
                "counts. " + (f"({warning}.)" if warning else "Nothing was changed.")
            )


def describe_released(trial_id: str, experiment: str, history: History) -> str:
    """Return what a release has changed, in one sentence."""
    failed = counted(len(history.released), "failed attempt")
    return (
        f"Trial {trial_id} runs again with the next restore of {experiment} that resumes it (an ERROR "
        f"trial: with --resume-errored, resume_errored=True); its {failed} no longer count."
    )
