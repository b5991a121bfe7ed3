"""The changes of the store as lines of the story: what is written, and what it holds."""

import json
from collections.abc import Callable
from fnmatch import fnmatchcase

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import counted
from tests.simulation.store import Shelf, Write
from tests.simulation.sweeps import TrialFiles
from tests.simulation.world import World


def tell_changes(world: World, shelf: Shelf) -> None:
    """Tell each change of the shelf before it is checked."""
    check = shelf.watch

    def watch(write: Write) -> None:
        world.tell(write.process, describe(write))
        check(write)

    shelf.watch = watch


def describe(write: Write) -> str:
    """Return one line about a change."""
    if write.body is None:
        return f"DELETES {write.key}"
    verb = "WRITES" if write.before is None else "OVERWRITES"
    same = " (the same)" if write.body == write.before else ""
    return f"{verb} {write.key}{_held(write.key, write.body)}{same}"


def _held(key: str, body: bytes) -> str:
    for pattern, describe_it in _DESCRIBED.items():
        if fnmatchcase(key, pattern):
            return f": {describe_it(body)}"
    return ""


def _result_rows(body: bytes) -> str:
    return f"iterations {[json.loads(line)['training_iteration'] for line in body.splitlines()]}"


def _state(body: bytes) -> str:
    trials = [TrialFiles.from_row(row) for row in json.loads(body)["trial_data"]]
    return ", ".join(f"{trial.trial_id} {trial.status} at {trial.iteration}" for trial in trials)


def _claim(body: bytes) -> str:
    claim = json.loads(body)
    return f"restore {claim['restore_id']}, TTL {claim['ttl_seconds']:.0f} s"


def _outcome(body: bytes) -> str:
    outcome = json.loads(body)
    return f"{outcome['result']} at iteration {outcome.get('iteration', 0)}"


def _commit(body: bytes) -> str:
    record = json.loads(body)
    state = "undone" if record["undone_at"] else "done" if record["is_done"] else "begun"
    return f"{state}, {record['state_file'] or 'no state'} from attempts {record['attempts']}"


def _ledger(body: bytes) -> str:
    return ", ".join(
        f"{trial_id} has {counted(len(history.get('failures', ())), 'failure')}"
        f"{' and is in quarantine' if history.get('quarantined') else ''}"
        for trial_id, history in json.loads(body)["trials"].items()
    )


_DESCRIBED: dict[str, Callable[[bytes], str]] = {
    "*/lease/*.claim.json": _claim,
    "*/outcome.json": _outcome,
    "*/exit.json": lambda body: f"exit code {json.loads(body)['exit_code']}",
    "*/commit.json": _commit,
    layout.LEDGER: _ledger,
    "*/result.json": _result_rows,
    "*/checkpoint_*/state.json": lambda body: f"iteration {json.loads(body)['iteration']}",
    "*/attempts/*/state.json": _state,
    f"{layout.STATE_PREFIX}*": _state,
}
"""By the pattern of an object's key."""
