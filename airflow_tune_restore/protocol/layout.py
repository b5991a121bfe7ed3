"""Every name in an experiment directory: Ray's and this package's. Names are built and parsed only here.

It also has the size limit of each kind of object, because a writer of the bucket can put anything there.

This package's names are below `.tune_restore/`, which Ray ignores. A trial id becomes one path segment by
an injective encoding: two ids never share a key, and no key leads outside. Standard library only.
"""

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from urllib.parse import quote, unquote

from airflow_tune_restore.storage.base import OWN_DIRECTORY

STATE_PREFIX = "experiment_state-"
STATE_SUFFIX = ".json"
TUNER_FILE = "tuner.pkl"
STORAGE_MARKER = ".validate_storage_marker"
"""Ray writes it when a driver or a runner starts (`StorageContext._create_validation_file`, Ray 2.60)."""
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.csv"
CHECKPOINT_PREFIX = "checkpoint_"
CALLBACKS_PREFIX = "callback-states-"
VARIANT_STATE_PREFIX = "basic-variant-state-"
SEARCH_STATE_PREFIX = "search_gen_state-"

MAX_RECORD_BYTES = 1024 * 1024
MAX_STATE_BYTES = 512 * 1024 * 1024
"""Four times the state of 10,000 trials; larger files are not read."""

MAX_PLAN_BYTES = 128 * 1024 * 1024
MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024
MAX_RESULT_BYTES = 256 * 1024 * 1024
"""Size limits of a small record, a plan, a snapshot, and Ray's result rows of one trial."""

PART_OF_PLAN = "tune_restore_plan"
"""Key in a seed, beside Ray's own: the part of the plan that the task of its trial needs, as text. Ray
decodes pickles in the objects of a state, and it must not find any in a plan."""

_MOST_DIGITS = 15
"""Limit of digits of a lease or an attempt. Counting never reaches it."""

ROOT = OWN_DIRECTORY
LEASE = f"{ROOT}/lease"
LEDGER = f"{ROOT}/ledger.json"
RECIPE = f"{ROOT}/recipe.json"
"""Written by the sweep itself or its owner: how it is restored (`restore.recipe`)."""

INDEX = f"{ROOT}/index-v2.jsonl"
"""The cache of scans, below a prefix and not below an experiment."""

WHOLE_EXPERIMENT = "*"
"""In the place of a trial id: the whole-experiment run. No trial may have this id."""

SHARED_DRIVER = "**"
"""In the place of a trial id: a driver that several trials share. No trial may have this id."""

RUNS_OF_MANY = {WHOLE_EXPERIMENT: "whole", SHARED_DRIVER: "shared"}
"""The units that are not one trial, with their directories in that of a restore."""

_UNITS = {directory: unit for unit, directory in RUNS_OF_MANY.items()}

KEPT = "kept"
"""In the place of the driver session in names of files that a runner saves."""

_SAVED = re.compile(
    r"^(?P<kind>.+)-(?P<session>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(?:_r\d{6})?)\.(?:json|pkl)$"
)
_COMMITTED = re.compile(r"^(?P<stem>.*?)(?:_r(?P<number>\d{6}))?$", re.DOTALL)
_SESSION = re.compile(r"^experiment_state-(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:_r\d{6})?\.json$")


@lru_cache(maxsize=1024)
def segment(name: str) -> str:
    """Encode any text as one path segment, injectively."""
    encoded = quote(name, safe="", errors="surrogatepass")
    if not encoded:
        return "%"  # quote() returns this for no name
    # quote() keeps dots, and `.` and `..` have a meaning in paths
    return encoded.replace(".", "%2E", 1) if encoded.startswith(".") else encoded


def unsegment(text: str) -> str:
    """Return the text that `segment` encoded."""
    return unquote(text)


def is_state_file(name: str) -> bool:
    """Whether a name is that of an experiment state (`experiment_state-*.json`)."""
    return name.startswith(STATE_PREFIX) and name.endswith(STATE_SUFFIX)


def is_committed_state(name: str) -> bool:
    """Whether a name is that of an experiment state of a commit, not of a driver."""
    if not is_state_file(name):
        return False
    match = _COMMITTED.match(name.removesuffix(STATE_SUFFIX))
    return match is not None and match["number"] is not None


def is_committed(name: str) -> bool:
    """Whether a name is that of any file of a commit in the root, not of a driver."""
    return is_committed_state(name) or (is_state_beside(name) and "_r" in (session_of(name) or ""))


def state_session(name: str) -> datetime | None:
    """Return the start of the driver session in a state file's name, in its local time."""
    match = _SESSION.match(name)
    try:
        return datetime.strptime(match[1], "%Y-%m-%d_%H-%M-%S") if match else None  # noqa: DTZ007
    except ValueError:
        return None


def session_of(name: str) -> str | None:
    """Return the driver session in the name of a file that Ray saves per session; None otherwise."""
    match = _SAVED.match(name)
    return match["session"] if match else None


def in_session(name: str, session: str) -> str:
    """Return Ray's name for a file that a runner saved as `<kind>-kept.<suffix>`."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem.removesuffix(KEPT)}{session}.{suffix}"


def callbacks_name(session: str) -> str:
    """Return the name of the saved states of callbacks."""
    return f"{CALLBACKS_PREFIX}{session}.pkl"


def is_searcher_state(name: str) -> bool:
    """Whether a name is that of a searcher state: saved per session, and of no other kind."""
    match = _SAVED.match(name)
    return match is not None and match["kind"] not in ("experiment_state", "callback-states")


def is_state_beside(name: str) -> bool:
    """Whether a name is that of a state of the searcher or of callbacks."""
    is_callbacks = name.startswith(CALLBACKS_PREFIX) and session_of(name) is not None
    return is_callbacks or is_searcher_state(name)


def committed_state_name(existing: list[str], now: Callable[[], datetime]) -> str:
    """Return a state file name that sorts after all existing ones; the time is used if none exists.

    Ray takes `max(filenames)` (ray.tune.execution.experiment_state, 2.60). `_` sorts after `.`,
    so `…_r000001.json` follows `….json`, and a later driver session still sorts after both.
    """
    newest = max(existing) if existing else f"{STATE_PREFIX}{now():%Y-%m-%d_%H-%M-%S}{STATE_SUFFIX}"
    match = _COMMITTED.match(newest.removesuffix(STATE_SUFFIX))
    assert match is not None  # noqa: S101  the pattern matches every text
    number = int(match["number"] or 0) + 1
    return f"{match['stem']}_r{number:06d}{STATE_SUFFIX}"


def parse_number(text: str, digits: int) -> int | None:
    """Read a number in the form of this package's names; None for any other text."""
    if not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS:
        return None
    return int(text) if text == f"{int(text):0{digits}d}" else None


def attempt_number(name: str) -> int | None:
    """Read the number in the name of an attempt's directory; None for other names."""
    return parse_number(name, 6)


def lease_epoch(name: str, kind: str) -> int | None:
    """Read the epoch in the name of a lease object of this kind; None for other names."""
    text, _, rest = name.partition(".")
    return parse_number(text, 8) if rest == f"{kind}.json" else None


def restore_dir(restore_id: str) -> str:
    """Return the directory of one restore."""
    return f"{ROOT}/{segment(restore_id)}"


def plan_key(restore_id: str) -> str:
    """Return the key of the plan, immutable once written."""
    return f"{restore_dir(restore_id)}/plan.json"


def commit_key(restore_id: str) -> str:
    """Return the key of the record of a commit."""
    return f"{restore_dir(restore_id)}/commit.json"


def trials_dir(restore_id: str) -> str:
    """Return the directory that has one sub-directory per trial that a restore runs by itself."""
    return f"{restore_dir(restore_id)}/trials"


def trial_dir(restore_id: str, trial_id: str) -> str:
    """Return the restore's directory for one trial (not Ray's trial directory)."""
    if trial_id in RUNS_OF_MANY:
        return f"{restore_dir(restore_id)}/{RUNS_OF_MANY[trial_id]}"
    return f"{trials_dir(restore_id)}/{segment(trial_id)}"


def seed_key(restore_id: str, trial_id: str) -> str:
    """Return the key of the seed: what the task of a trial reads (`PART_OF_PLAN`), and its runner.

    It is an experiment state with only this trial's row; without rows in a whole-experiment run, which
    starts from the state itself.
    """
    return f"{trial_dir(restore_id, trial_id)}/seed.json"


def results_backup_key(restore_id: str, trial_id: str) -> str:
    """Return the key of the copy of result.json as it was before rows were trimmed."""
    return f"{trial_dir(restore_id, trial_id)}/{RESULT_FILE}.before"


def attempts_dir(restore_id: str, trial_id: str) -> str:
    """Return the directory that has one sub-directory per attempt."""
    return f"{trial_dir(restore_id, trial_id)}/attempts"


def attempt_dir(restore_id: str, trial_id: str, attempt: int) -> str:
    """Return the directory of one attempt (numbered from 1)."""
    return f"{attempts_dir(restore_id, trial_id)}/{attempt:06d}"


def attempt_of(path: str) -> tuple[str, int, str] | None:
    """Return the unit, the attempt and the name of a record by its path in the directory of its restore.

    None for objects that are not records of an attempt.
    """
    match path.split("/"):
        case ["trials", encoded, "attempts", number, name]:
            unit = unsegment(encoded)
        case [directory, "attempts", number, name] if directory in _UNITS:
            unit = _UNITS[directory]
        case _:
            return None
    attempt = attempt_number(number)
    return None if attempt is None else (unit, attempt, name)


def stops_dir(restore_id: str, attempt: int) -> str:
    """Return the directory of requests to stop single trials of a whole-experiment run."""
    return f"{attempt_dir(restore_id, WHOLE_EXPERIMENT, attempt)}/stops"


def stop_key(restore_id: str, attempt: int, trial_id: str) -> str:
    """Return the key of a request to stop one trial of a whole-experiment run."""
    return f"{stops_dir(restore_id, attempt)}/{segment(trial_id)}.json"


def desk_dir(restore_id: str) -> str:
    """Return the directory in which trials are handed to a shared driver (`protocol.desk`)."""
    return f"{trial_dir(restore_id, SHARED_DRIVER)}/desk"


def searcher_dir(restore_id: str, attempt: int) -> str:
    """Return the directory of the searcher's saved states in one whole-experiment run."""
    return f"{attempt_dir(restore_id, WHOLE_EXPERIMENT, attempt)}/searcher"


def numbered(number: int, name: str = "") -> str:
    """Return the name of a searcher state file that belongs to the snapshot of this number."""
    return f"{number:06d}-{name}"


def max_snapshot_bytes(trial_id: str) -> int:
    """Return the size limit of a snapshot: one of all trials is as large as a state."""
    return MAX_STATE_BYTES if trial_id == WHOLE_EXPERIMENT else MAX_SNAPSHOT_BYTES


# each returns the function that builds the key of one object, of an epoch or of an attempt
def _of_lease(kind: str) -> Callable[[int], str]:
    return lambda epoch: f"{LEASE}/{epoch:08d}.{kind}.json"


def _of_attempt(name: str) -> Callable[[str, str, int], str]:
    return lambda restore_id, trial_id, attempt: (
        f"{attempt_dir(restore_id, trial_id, attempt)}/{name}"
    )


lease_claim_key = _of_lease("claim")
"""Its exclusive creation takes the lease at this epoch."""
lease_heartbeat_key = _of_lease("heartbeat")
"""The holder of the epoch overwrites it while it is alive."""
lease_dag_run_key = _of_lease("dag_run")
"""The DAG run of the epoch, if Airflow has started it again since the claim."""
lease_release_key = _of_lease("release")
"""The holder of the epoch writes it at its end."""

request_key = _of_attempt("request.json")
"""Its exclusive creation claims the number of the attempt."""
heartbeat_key = _of_attempt("heartbeat.json")
"""The runner overwrites it every few seconds."""
snapshot_key = _of_attempt("state.json")
"""The newest state, in Ray's format, with only this trial's row."""
progress_key = _of_attempt("progress.json")
"""The newest reports of the trial."""
stopped_key = _of_attempt("stopped.json")
"""Marks the attempt as stopped: followers do not attach to it again."""
outcome_key = _of_attempt("outcome.json")
exit_key = _of_attempt("exit.json")
"""The exit record of a runner that left no outcome."""
