"""Release a trial from quarantine: its failures so far no longer count."""

import secrets
from shlex import quote

import msgspec

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.protocol.lease_watch import OnWait, log_wait
from airflow_tune_restore.restore.commit import commit_abandoned
from airflow_tune_restore.restore.ledger import KEPT, History, read_ledger, write_ledger
from airflow_tune_restore.storage.base import ObjectStore

TTL_SECONDS = 30.0


def release_trial(
    store: ObjectStore, trial_id: str, *, holder: str, on_wait: OnWait = log_wait
) -> History:
    """Let a trial run again. First commit what a restore that died left behind.

    `holder` is who takes the lease, for people. `on_wait` shows the watch of a restore that looks dead.
    Returns the history of the trial; its `released` holds the failures that no longer count.

    Raises:
        InvalidInputError: If the trial does not exist, or is not quarantined.
        LeaseHeldError: If a restore is running.
    """
    _check(store, trial_id)
    restore_id = f"release-{secrets.token_hex(4)}"
    commit_abandoned(store, restore_id=restore_id, holder=holder, on_wait=on_wait)
    held = lease.acquire(store, restore_id=restore_id, holder=holder, ttl_seconds=TTL_SECONDS)
    try:
        ledger, _ = read_ledger(store)
        history = ledger.trials.get(trial_id, History())
        released = History(
            released=(history.released + history.failures)[-KEPT:],
            released_at=store.now().isoformat(),
        )
        trials = {**ledger.trials, trial_id: released}
        write_ledger(store, msgspec.structs.replace(ledger, trials=trials))
    finally:
        lease.release(store, held)
    return released


def _check(store: ObjectStore, trial_id: str) -> None:
    ledger, warning = read_ledger(store)
    trials = read_experiment(store, keep_terminated_rows=False).trials
    if trial_id not in {trial.trial_id for trial in trials}:
        raise InvalidInputError(
            f"{store.uri} has no trial {trial_id!r}. `tune-restore plan {quote(store.uri)}` lists "
            "them."
        )
    if not ledger.trials.get(trial_id, History()).failures:
        raise InvalidInputError(
            f"Trial {trial_id} of {store.uri} is not quarantined: it has no failed attempt that counts. "
            + (f"({warning}.)" if warning else "Nothing was changed.")
        )
