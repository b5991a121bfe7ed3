"""The invariants I1 to I8 as code: one function for each, checked at every step and at the end.

`Invariants` watches every change of the store and every iteration that is trained. A broken invariant
ends the world at that step.
"""

import hashlib
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.protocol.attempts import QUIET_SECONDS
from airflow_tune_restore.protocol.lease_watch import KNOWN_DEAD_SECONDS
from airflow_tune_restore.protocol.request import RunnerOutcome
from airflow_tune_restore.restore.ledger import Ledger
from airflow_tune_restore.restore.plan import RestorePlan, TrialPlan
from airflow_tune_restore.restore.record_json import decode
from tests.simulation.store import Shelf, Write
from tests.simulation.sweeps import CHECKPOINT_EVERY, Sweep, TrialFiles
from tests.simulation.world import Process, World

if TYPE_CHECKING:
    from tests.simulation.airflow import Airflow

SLACK_SECONDS = 10.0
"""Between a look at the clock of a store and what follows from it, if nothing is slow."""

LOOK_SECONDS = 30.0
"""A runner that thaws finds out that another one has taken its place: at its next look, with four
requests to a slow store."""

FIRST_WRITE_SECONDS = 120.0
"""Nothing shows a driver that has just started and has not written yet."""

LONGEST_LOOK_SECONDS = 90.0
"""A runner looks every few seconds; the longest request, and an iteration, may come in between."""

_COMMITTERS = frozenset({"plan", "commit", "samples", "release"})

_LEDGER = msgspec.json.Decoder(Ledger)


class InvariantBroken(BaseException):  # noqa: N818  no code under simulation may catch it
    """An invariant does not hold: which one, and what shows it."""


def _restore_of(key: str) -> str:
    """Return the restore that an object in this package's directory belongs to."""
    return key.split("/")[1]


def _unit_of(key: str) -> str:
    """Return the trial that a record of an attempt belongs to."""
    return layout.unsegment(key.split("/")[3])


def broken(name: str, what: str) -> InvariantBroken:
    """Return the error for a broken invariant."""
    return InvariantBroken(f"{name}: {what}")


class Invariants:
    """Watches one world."""

    def __init__(self, world: World, shelf: Shelf, sweep: Sweep, ttl_seconds: float) -> None:
        self.world = world
        self.shelf = shelf
        self.sweep = sweep
        self.ttl_seconds = ttl_seconds
        self.originals = sweep.files()
        self.trainers: dict[str, tuple[Process, float]] = {}
        self.beats: dict[Process, float] = {}
        self.beats_of_trial: dict[tuple[Process, str], float] = {}
        self.first_beats: dict[tuple[Process, str], float] = {}
        self.longest_silence: dict[Process, float] = {}
        self.sharers: dict[str, Process] = {}
        self.units: dict[str, str] = {}
        self.has_outcome: set[Process] = set()
        self.has_outcome_of: set[tuple[Process, str]] = set()
        self.claims_of_faulty_nights = 0
        self.progress: dict[tuple[str, str], int] = {}
        self.finished: dict[str, str] = {}
        self.planned_at: dict[str, float] = {}
        self.first_write: dict[Process, float] = {}
        self.committed_at: dict[str, float] = {}
        self.committed_from: dict[str, float] = {}
        self.driven_at = -math.inf
        self.raised: Counter[str] = Counter()
        self.made: dict[str, bytes] = {}
        self.deleted: set[str] = set()
        self.undone = False
        self.failed: set[tuple[str, str, int]] = set()
        self.taken_back: set[tuple[str, str, int]] = set()
        self.ended_with_error: Counter[str] = Counter()
        self.drivers: list[tuple[Process, float]] = []
        self.is_calm = False
        self.windows: dict[str, str] = {}
        shelf.watch = self.watch
        world.watch_training = self.watch_training

    def watch(self, write: Write) -> None:
        """Check a change of the store."""
        i2_nothing_of_ray_changes(self, write)
        self.first_write.setdefault(write.process, self.world.now)
        if write.key.startswith(layout.ROOT):
            if write.body is None:
                return
            if write.key.endswith("/plan.json"):
                i3_a_plan_has_its_seeds(self, write)
                self.planned_at[_restore_of(write.key)] = self.world.now
                self.windows[_restore_of(write.key)] = json.loads(write.body)["pause_at"]
            elif write.key.endswith("/seed.json"):
                i3_a_seed_fits_its_plan(self, write)
            elif write.key.endswith(".claim.json"):
                i5_one_restore(self, write)
                i6_a_living_experiment_is_left_alone(self, write)
            elif write.key.endswith("/request.json"):
                i7_nothing_is_run_after_its_commit(self, write)
                i8_nothing_goes_on_after_its_window(
                    self, write.process, _restore_of(write.key), 0.0
                )
            elif write.key.endswith("/commit.json"):
                self._note_commit(write)
            elif write.key.endswith("/outcome.json"):
                self._note_outcome(write)
            elif write.key.endswith("/exit.json"):
                i4_a_living_driver_keeps_its_trials(self, write)
            elif write.key.endswith("/state.json"):
                self._note_progress(write)
            elif write.key == layout.LEDGER:
                self._note_ledger(write)
            elif write.key.endswith("/heartbeat.json"):
                self._note_beat(write)
        elif write.process.role == "driver":
            self.driven_at = self.world.now
            self.finished.clear()  # restores of before no longer fit what it writes
        elif write.key.endswith("/error.txt"):
            self.raised[write.key.partition("/")[0]] += 1
        elif layout.is_committed_state(write.key):
            if write.body is None:
                self.deleted.add(write.key)
                self.undone = True
                self.finished.clear()
            else:
                i1_a_commit_is_what_a_restore_leaves(self, write)
                self.made[write.key] = write.body

    def watch_training(self, process: Process, trial_id: str, iteration: int) -> None:
        """Check an iteration that is trained."""
        unit = self.units.get(trial_id, trial_id)
        if not self.has_trained(process, unit):
            self._note_silence(process, unit)  # it knows only now that it has begun the trial
        i4_one_runner_per_trial(self, process, trial_id)
        restore = f"airflow-{process.name.removeprefix('runner ').partition('/')[0]}"
        i8_nothing_goes_on_after_its_window(self, process, restore, window.GRACE_SECONDS)
        is_unfinished = iteration < self.sweep.target(trial_id)
        if trial_id in self.finished and is_unfinished and _could_know(self, process):
            raise broken(
                "I3",
                f"{process} trains {trial_id} again, which {self.finished[trial_id]} has finished",
            )

    def has_ended(self, process: Process, trial_id: str) -> bool:
        """Whether a process is gone, or has recorded that it no longer runs a trial."""
        is_over = process in self.has_outcome or (process, trial_id) in self.has_outcome_of
        return is_over or not process.is_alive

    def has_trained(self, process: Process, unit: str) -> bool:
        """Return whether a process is the last that trained a trial, by its planned id."""
        units = {
            self.units.get(trial_id, trial_id)
            for trial_id, (trainer, _began) in self.trainers.items()
            if trainer is process
        }
        return unit in units

    def silent(self, process: Process, trial_id: str, began: float) -> float:
        """Return for how long a process has written no heartbeat for a trial that it began."""
        if not _is_shared_driver(process):
            return self.world.now - self.beats.get(process, began)
        unit = self.units.get(trial_id, trial_id)
        return self.world.now - self.beats_of_trial.get((process, unit), began)

    def _note_beat(self, write: Write) -> None:
        process, now = write.process, self.world.now
        self.beats[process] = now
        if not _is_shared_driver(process):
            return
        unit = layout.SHARED_DRIVER
        if "/trials/" in write.key:
            i4_one_driver_per_attempt(self, write)
            unit = _unit_of(write.key)
        self._note_silence(process, unit)
        self.beats_of_trial[process, unit] = now
        self.first_beats.setdefault((process, unit), now)

    def _note_silence(self, process: Process, unit: str) -> None:
        silence = self.world.now - self.beats_of_trial.get((process, unit), self.world.now)
        self.longest_silence[process] = max(silence, self.longest_silence.get(process, 0.0))

    def note_driver(self, driver: Process, *, has_written: bool) -> None:
        """Take note of a driver; a restore that died uncommitted no longer fits what it writes."""
        self.drivers.append((driver, -math.inf if has_written else self.world.now))
        self.finished.clear()

    def note_quiet(self) -> None:
        """Take note that no fault strikes from now on."""
        names = [key for key in self.shelf.objects if key.startswith(layout.LEASE)]
        self.claims_of_faulty_nights = len([name for name in names if "claim" in name])

    def _note_progress(self, write: Write) -> None:
        """Take note of the checkpoints in a snapshot."""
        assert write.body is not None
        restore = _restore_of(write.key)
        for row in json.loads(write.body)["trial_data"]:
            trial = TrialFiles.from_row(row)
            known = self.progress.get((restore, trial.trial_id), 0)
            self.progress[restore, trial.trial_id] = max(known, _saved(trial))

    def _note_ledger(self, write: Write) -> None:
        """Take note of failures that the store takes back, as it carries out an old write again."""
        assert write.body is not None
        if write.before is not None and not write.process.is_alive:
            self.taken_back |= _counted(write.before).keys() - _counted(write.body).keys()

    def _note_commit(self, write: Write) -> None:
        restore = _restore_of(write.key)
        self.committed_at.setdefault(restore, self.world.now)
        self.committed_from.setdefault(restore, self.first_write[write.process])

    def _note_outcome(self, write: Write) -> None:
        assert write.body is not None
        if write.body == write.before:
            return
        outcome = RunnerOutcome.from_json(write.body)
        is_whole = f"/{layout.WHOLE_EXPERIMENT}/" in write.process.name
        is_trial = outcome.trial_id not in layout.RUNS_OF_MANY
        is_shared = _is_shared_driver(write.process)
        if not is_trial or not (is_whole or is_shared):
            self.has_outcome.add(write.process)
        began = self.first_write[write.process]
        if is_shared and is_trial:
            self.has_outcome_of.add((write.process, outcome.final_trial_id))
            began = self.first_beats.get((write.process, outcome.trial_id), began)
        looked = self.committed_from.get(outcome.restore_id, math.inf)
        if began > looked:
            return  # its runner began when the commit had looked for runners
        still_fits = self.planned_at.get(outcome.restore_id, 0.0) > self.driven_at
        if outcome.result == "finished" and is_trial and still_fits:
            self.finished[outcome.final_trial_id] = write.process.name
        if outcome.result == "failed":
            self.failed.add((outcome.trial_id, outcome.restore_id, outcome.attempt))
            if write.before is None:
                self.ended_with_error[outcome.final_trial_id] += 1
                i7_one_failure_is_recorded_once(self, write, outcome.final_trial_id)


def i1_a_commit_is_what_a_restore_leaves(watch: Invariants, write: Write) -> None:
    """I1: same ids in the same order; rows that were not restored are the same; nothing goes back."""
    names = [key for key in watch.shelf.objects if "/" not in key and layout.is_state_file(key)]
    if max(names) != write.key:
        raise broken(
            "I1", f"{write.key} is not the state that Ray reads: {max(names)} sorts after it"
        )
    assert write.body is not None
    state = json.loads(write.body)
    others = sorted(name for name in names if name != write.key)
    base = json.loads(watch.shelf.objects[others[-1]].body)
    if state["stats"]["start_time"] <= base["stats"]["start_time"]:
        raise broken("I1", f"{write.key} is not newer than {others[-1]} by its start")
    rows = [TrialFiles.from_row(row) for row in state["trial_data"]]
    before = [TrialFiles.from_row(row) for row in base["trial_data"]]
    if len(rows) < len(before):
        raise broken("I1", f"{write.key} has {len(rows)} trials, {others[-1]} has {len(before)}")
    for old, new in zip(before, rows, strict=False):
        _check_row(watch, write.key, old, new)
    for new in rows[len(before) :]:
        _check_reached(watch, write.key, new)
    i7_progress_is_committed(watch, write, rows)


def _check_row(watch: Invariants, name: str, old: TrialFiles, new: TrialFiles) -> None:
    if old == new:
        return
    is_restarted = watch.sweep.restarts and old.status == "ERROR" and new.trial_id != old.trial_id
    if new.trial_id != old.trial_id and not is_restarted:
        raise broken("I1", f"{name} has {new.trial_id} in the place of {old.trial_id}")
    if old.status == "TERMINATED":
        raise broken("I1", f"{name} changes the row of {old.trial_id}, which was not restored")
    if not is_restarted and _saved(new) < _saved(old):
        raise broken("I7", f"{name} goes back with {old.trial_id}: {old} to {new}")
    _check_reached(watch, name, new)


def _check_reached(watch: Invariants, name: str, trial: TrialFiles) -> None:
    if trial.status == "TERMINATED" and trial.iteration != watch.sweep.target(trial.trial_id):
        raise broken("I1", f"{name} has {trial.trial_id} TERMINATED at {trial.iteration}")


def _saved(trial: TrialFiles) -> int:
    return trial.checkpoint[1] if trial.checkpoint else 0


def i2_nothing_of_ray_changes(watch: Invariants, write: Write) -> None:
    """I2: nothing that Ray wrote is changed, but what a resumed trial writes in its own directory."""
    key, role = write.key, write.process.role
    if key.startswith(f"{layout.ROOT}/") or role == "driver":
        return
    if "/" in key:
        _check_trial_file(write)
        return
    if layout.is_committed_state(key):
        if write.body is None and not _is_marked_undone(watch.shelf, key):
            raise broken(
                "I2", f"{write.process} deletes {key}, and no record says that it is undone"
            )
        if write.body is not None and write.before is not None:
            raise broken("I2", f"{write.process} overwrites {key}")
        is_back = key in watch.deleted and watch.made.get(key) == write.body
        # a request that the store carries out again, after its process: the next restore undoes it again
        if is_back and write.process.is_alive and not _is_being_committed(watch.shelf, key):
            raise broken("I2", f"{write.process} brings {key} back, which was undone")
        if write.body is not None and role not in _COMMITTERS:
            raise broken("I2", f"{write.process} writes {key}")
        return
    if layout.is_committed(key):
        if write.body is not None and not _belongs_to_a_state(watch.shelf, key):
            raise broken("I2", f"{write.process} puts {key}, which belongs to no state")
        return
    raise broken("I2", f"{write.process} changes {key}")


def _is_marked_undone(shelf: Shelf, name: str) -> bool:
    return any(record["undone_at"] for record in _records_of(shelf, name))


def _is_being_committed(shelf: Shelf, name: str) -> bool:
    """Whether a commit has begun that makes this state, and may make what an undone one had made."""
    return any(not record["undone_at"] for record in _records_of(shelf, name))


def _records_of(shelf: Shelf, name: str) -> list[dict[str, Any]]:
    """Return the records of all commits that make, or made, a state of this name."""
    records = [json.loads(s.body) for k, s in shelf.objects.items() if k.endswith("/commit.json")]
    return [record for record in records if record["state_file"] == name]


def _belongs_to_a_state(shelf: Shelf, key: str) -> bool:
    session = layout.session_of(key)
    return any(
        "/" not in name and layout.is_state_file(name) and layout.session_of(name) == session
        for name in shelf.objects
    )


def _check_trial_file(write: Write) -> None:
    name = write.key.rpartition("/")[2]
    if write.process.role != "runner":
        raise broken("I2", f"{write.process} writes {write.key}")
    if write.body is None:
        raise broken("I2", f"{write.process} deletes {write.key}")
    if f"/{layout.CHECKPOINT_PREFIX}" in write.key and write.before not in (None, write.body):
        raise broken("I2", f"{write.process} overwrites {write.key}")
    if name not in ("result.json", "error.txt", "state.json"):
        raise broken("I2", f"{write.process} writes {write.key}")


def i3_a_plan_has_its_seeds(watch: Invariants, write: Write) -> None:
    """I3: once a plan is in the store, whoever dies, its runners have what they start from."""
    assert write.body is not None
    plan: RestorePlan = RestorePlan.from_json(write.body)
    if write.before is not None:
        raise broken("I3", f"{write.process} overwrites {write.key}")
    for trial in plan.to_run:
        watch.units[trial.final_trial_id] = trial.trial_id
        seed = watch.shelf.objects.get(layout.seed_key(plan.restore_id, trial.trial_id))
        if seed is None:
            raise broken("I3", f"{write.key} is written before the seed of {trial.trial_id}")
        _check_part(write, seed.body, plan, trial)


def i3_a_seed_fits_its_plan(watch: Invariants, write: Write) -> None:
    """I3: a task that reads its part of the plan from a seed does what the commit expects of the plan."""
    assert write.body is not None
    restore_id = _restore_of(write.key)
    stored = watch.shelf.objects.get(layout.plan_key(restore_id))
    if stored is None or layout.commit_key(restore_id) in watch.shelf.objects:
        return  # no task reads it yet, or any more
    plan: RestorePlan = RestorePlan.from_json(stored.body)
    for trial in plan.to_run:
        if layout.seed_key(restore_id, trial.trial_id) == write.key:
            _check_part(write, write.body, plan, trial)


def _check_part(write: Write, seed: bytes, plan: RestorePlan, trial: TrialPlan) -> None:
    part: RestorePlan = RestorePlan.from_json(json.loads(seed)[layout.PART_OF_PLAN].encode())
    if (part.restore_id, part.base, part.trials) != (plan.restore_id, plan.base, (trial,)):
        raise broken("I3", f"{write.key}: the seed of {trial.trial_id} has the part {part.trials}")


def i3_every_step_can_be_repeated(watch: Invariants, airflow: "Airflow") -> None:
    """I3: after a quiet night no result row and no checkpoint is lost or doubled, and all are done."""
    rows = _newest_rows(watch)
    wanted = len(watch.sweep.trials) + watch.sweep.draws
    if len(rows) != wanted:
        raise broken("I3", f"there are {len(rows)} trials, not {wanted}: {rows}")
    for trial in rows:
        _check_end(watch, trial, airflow)
        _check_result_rows(watch, trial)
    _check_leases(watch)
    _check_commit_records(watch)


def i3_a_quiet_night_is_the_last(watch: Invariants, *, changed: bool) -> None:
    """I3: the quiet night after a quiet night changes nothing: not even a trial that always fails is run.

    Such a trial has failed twice by then, and is in quarantine.
    """
    if changed:
        raise broken("I3", "a quiet night after a quiet night changes something")


def _newest_rows(watch: Invariants) -> list[TrialFiles]:
    names = [key for key in watch.shelf.objects if "/" not in key and layout.is_state_file(key)]
    state = json.loads(watch.shelf.objects[max(names)].body)
    return [TrialFiles.from_row(row) for row in state["trial_data"]]


def _check_end(watch: Invariants, trial: TrialFiles, airflow: "Airflow") -> None:
    if trial.status == "TERMINATED" and trial.iteration == watch.sweep.target(trial.trial_id):
        return
    if _quarantined(watch, trial.trial_id, airflow.max_attempts):
        i7_quarantine_has_its_reasons(watch, trial.trial_id, airflow.max_attempts)
        return  # as it was, perhaps: it may have died before it made any progress
    fails_after = watch.sweep.broken.get(trial.trial_id)
    if fails_after is not None and trial.status == "ERROR" and trial.iteration >= fails_after:
        return
    raise broken("I3", f"a quiet night has not finished {trial}")


def _quarantined(watch: Invariants, trial_id: str, max_attempts: int | None) -> bool:
    stored = watch.shelf.objects.get(layout.LEDGER)
    if stored is None:
        return False
    ledger = decode(stored.body, _LEDGER)
    return trial_id in ledger.quarantined(max_attempts)


def _check_result_rows(watch: Invariants, trial: TrialFiles) -> None:
    key = f"{trial.trial_dir}/{layout.RESULT_FILE}"
    if trial.iteration == 0:
        return
    lines = watch.shelf.get(key).decode().splitlines()
    found = [json.loads(line)["training_iteration"] for line in lines]
    counts = Counter(found)
    missing = [n for n in range(1, trial.iteration + 1) if n not in counts]
    if missing:
        raise broken("I3", f"{key} has lost iterations {missing}: {found}")
    original = watch.originals.get(key, b"").count(b"\n")
    most = 1 + watch.ended_with_error[trial.trial_id] + 10 * watch.undone + 2 * len(watch.drivers)
    for number, times in counts.items():
        repeats = number <= original and number > original - CHECKPOINT_EVERY
        if times > most + repeats:
            raise broken("I3", f"{key} has iteration {number} {times} times: {found}")


def _check_leases(watch: Invariants) -> None:
    """Check that no lease hides work. One that died without any stays until there is something to do."""
    names = [key.rpartition("/")[2] for key in watch.shelf.objects if key.startswith(layout.LEASE)]
    claimed = {name.partition(".")[0] for name in names if name.endswith(".claim.json")}
    released = {name.partition(".")[0] for name in names if name.endswith(".release.json")}
    for number in sorted(claimed - released):
        if int(number) > watch.claims_of_faulty_nights:
            raise broken("I3", f"a quiet night has not released lease {number}")
        claim = json.loads(watch.shelf.get(f"{layout.LEASE}/{number}.claim.json"))
        directory = layout.restore_dir(claim["restore_id"])
        has_run = any(
            key.startswith(directory) and key.endswith("/heartbeat.json")
            for key in watch.shelf.objects
        )
        if has_run and f"{directory}/commit.json" not in watch.shelf.objects:
            raise broken("I3", f"lease {number} was never released, and its work not committed")


def _check_commit_records(watch: Invariants) -> None:
    """Check that each state of a commit has one record that is done, and each such record its state."""
    states = {key for key in watch.shelf.objects if layout.is_committed_state(key)}
    named = set()
    for key, stored in watch.shelf.objects.items():
        if not key.startswith(layout.ROOT) or not key.endswith("/commit.json"):
            continue
        record = json.loads(stored.body)
        if not record["is_done"] and watch.drivers and record["state_file"] not in states:
            continue  # its own driver has run since: what was about to be committed no longer fits
        if not record["is_done"]:
            raise broken("I3", f"{key} was never done")
        if record["undone_at"] and watch.drivers:
            named.add(record["state_file"])  # an undo was cut off, and its own driver went on
        if record["state_file"] and not record["undone_at"]:
            if record["state_file"] not in states:
                raise broken("I3", f"{key} names {record['state_file']}, which does not exist")
            body = watch.shelf.objects[record["state_file"]].body
            if record["sha256"] != hashlib.sha256(body).hexdigest():
                raise broken("I3", f"{key} did not make {record['state_file']} as it is")
            named.add(record["state_file"])
    if states - named:
        raise broken("I2", f"{sorted(states - named)} have no commit record")
    sessions = {layout.session_of(name) for name in states}
    for key in watch.shelf.objects:
        is_beside = layout.is_state_beside(key) and layout.is_committed(key)
        if is_beside and layout.session_of(key) not in sessions:
            raise broken("I2", f"{key} is left of a commit that was undone")


def i4_one_runner_per_trial(watch: Invariants, process: Process, trial_id: str) -> None:
    """I4: a trial never has two live runners.

    A runner begins when those before it have ended, or their heartbeats were silent for long enough to
    take them for dead. One that lives after all trains no further than its next look.
    """
    now = watch.world.now
    newest, began = watch.trainers.get(trial_id, (process, now))
    if _is_shared_driver(process) and (process, trial_id) in watch.has_outcome_of:
        raise broken("I4", f"{process} trains {trial_id} after its outcome")
    if newest is process or watch.has_ended(newest, trial_id):
        watch.trainers[trial_id] = (process, now if newest is not process else began)
        return
    if _is_superseded(process, newest):
        if now > began + LONGEST_LOOK_SECONDS and _could_know(watch, process):
            raise broken("I4", f"{process} still trains {trial_id}, although {newest} has begun")
        return
    silent = watch.silent(newest, trial_id, began)
    if silent < QUIET_SECONDS and newest.frozen_until <= now:
        raise broken("I4", f"{process} trains {trial_id} while {newest} lives")
    watch.trainers[trial_id] = (process, now)


def i4_one_driver_per_attempt(watch: Invariants, write: Write) -> None:
    """I4: of two drivers that take one attempt, the first to begin it runs it, and nobody after it."""
    first = watch.sharers.setdefault(write.key, write.process)
    if first is not write.process:
        raise broken("I4", f"{write.process} begins {write.key}, which {first} has begun")


def i4_a_living_driver_keeps_its_trials(watch: Invariants, write: Write) -> None:
    """I4: a trial is given up as lost with its driver only if that has ended, or was silent once.

    A driver that was cut off begins trials before it beats for itself again: its silence, as a follower
    sees it, lasts until then. A driver whose first heartbeat for a trial gets no answer does not know
    that it has begun it: it beats for the others, and neither beats for that one nor trains it.
    """
    driver = watch.sharers.get(f"{write.key.rpartition('/')[0]}/heartbeat.json")
    if driver is None or not driver.is_alive or driver in watch.has_outcome:
        return
    silent_since = watch.beats_of_trial[driver, layout.SHARED_DRIVER]
    unit = _unit_of(write.key)
    if not watch.has_trained(driver, unit):
        silent_since = min(silent_since, watch.beats_of_trial[driver, unit])
    silence = max(watch.world.now - silent_since, watch.longest_silence[driver])
    if silence < QUIET_SECONDS:
        raise broken("I4", f"{write.process} puts {write.key}, although {driver} lives")


def _is_shared_driver(process: Process) -> bool:
    return f"/{layout.SHARED_DRIVER}/" in process.name


def _is_superseded(process: Process, newest: Process) -> bool:
    """Whether a runner belongs to an earlier attempt or restore than the newest one."""
    return process.number < newest.number


def _could_know(watch: Invariants, process: Process) -> bool:
    """Whether a runner had the time to look around since it was frozen, or cut off from the store.

    A runner that is cut off cannot write, and ends itself after two thirds of the lease's TTL.
    """
    now = watch.world.now
    if process.frozen_until and now < process.frozen_until + LOOK_SECONDS:
        return False
    if process.cut_off_until and now < process.cut_off_until + LOOK_SECONDS:
        return (
            now > watch.beats.get(process, 0.0) + watch.ttl_seconds * 2 / 3 + LONGEST_LOOK_SECONDS
        )
    return True


def i5_one_restore(watch: Invariants, write: Write) -> None:
    """I5: each number has one claim, and whoever takes the lease finds no living runner of another one.

    A runner whose heartbeats do not reach the store may go on for a while, as `_could_know` describes.
    """
    assert write.body is not None
    if write.before is not None:
        raise broken("I5", f"{write.process} takes {write.key}, which another process holds")
    restore_id = json.loads(write.body)["restore_id"]
    for trial_id, (trainer, _began) in watch.trainers.items():
        if watch.has_ended(trainer, trial_id) or not _could_know(watch, trainer):
            continue
        silent = watch.world.now - watch.beats.get(trainer, 0.0)
        if KNOWN_DEAD_SECONDS <= silent < watch.ttl_seconds * 2 / 3 + LONGEST_LOOK_SECONDS:
            continue
        if trainer.name.split("/")[0] != f"runner {restore_id.removeprefix('airflow-')}":
            raise broken("I5", f"{write.process} takes the lease while {trainer} trains {trial_id}")


def i6_a_living_experiment_is_left_alone(watch: Invariants, write: Write) -> None:
    """I6: no restore begins while the experiment's own driver lives, once that one has written."""
    for driver, began in watch.drivers:
        has_written = watch.world.now > began + FIRST_WRITE_SECONDS
        if driver.is_alive and has_written and write.process.role == "plan":
            raise broken("I6", f"{write.process} takes the lease while {driver} lives")


def i7_progress_is_committed(watch: Invariants, write: Write, rows: list[TrialFiles]) -> None:
    """I7: a trial is committed with the progress that its runners had saved, whatever failed."""
    for key, stored in watch.shelf.objects.items():
        if not key.endswith("/commit.json") or json.loads(stored.body)["state_file"] != write.key:
            continue
        restore = _restore_of(key)
        for trial in rows:
            saved = watch.progress.get((restore, trial.trial_id), 0)
            if _saved(trial) < saved and json.loads(stored.body)["undone_at"] == "":
                raise broken("I7", f"{write.key} has {trial}, whose runner had saved {saved}")


def i7_quarantine_has_its_reasons(
    watch: Invariants, trial_id: str, max_attempts: int | None
) -> None:
    """I7: a trial is in quarantine after it failed twice in the same way, or too often; not before."""
    failures = _ledger(watch).get(trial_id, {}).get("failures", ())
    kinds = Counter((f["type"], f["place"], f["iteration"]) for f in failures if f["place"])
    is_too_often = max_attempts is not None and len(failures) >= max_attempts
    if max(kinds.values(), default=0) < 2 and not is_too_often:
        raise broken("I7", f"{trial_id} is in quarantine after {len(failures)} failures: {kinds}")


def i7_nothing_is_run_after_its_commit(watch: Invariants, write: Write) -> None:
    """I7: no attempt is claimed once the commit of its restore has begun: its work would be lost."""
    began = watch.committed_at.get(_restore_of(write.key), math.inf)
    if watch.world.now > began + LONGEST_LOOK_SECONDS and _could_know(watch, write.process):
        raise broken("I7", f"{write.process} claims {write.key} after the commit has begun")


def i7_one_failure_is_recorded_once(watch: Invariants, write: Write, trial_id: str) -> None:
    """I7: no attempt records the failure of another one: two of the same put a trial in quarantine."""
    raised, recorded = (
        watch.raised[TrialFiles(trial_id).trial_dir],
        watch.ended_with_error[trial_id],
    )
    if recorded > raised:
        raise broken(
            "I7", f"{write.key} is failure {recorded} of {trial_id}, which failed {raised} times"
        )


def i7_failures_are_counted(watch: Invariants) -> None:
    """I7: every failed attempt is in the ledger once, across nights; none that did not fail is."""
    stored = watch.shelf.objects.get(layout.LEDGER)
    counted = Counter() if stored is None else _counted(stored.body)
    doubled = {key: times for key, times in counted.items() if times > 1}
    if doubled:
        raise broken("I7", f"failures are counted more than once: {doubled}")
    i7_a_lost_driver_is_no_failure(watch)
    missing = watch.failed - watch.taken_back - counted.keys()
    if missing:
        raise broken("I7", f"failed attempts are not in the ledger: {sorted(missing)}")


def i7_a_lost_driver_is_no_failure(watch: Invariants) -> None:
    """I7: of an attempt in a shared driver, only what the trial itself raised counts."""
    for trial_id, history in _ledger(watch).items():
        for failure in (*history.get("failures", ()), *history.get("released", ())):
            unit = watch.units.get(trial_id, trial_id)  # a commit renames a restarted trial
            key = layout.request_key(failure["restore_id"], unit, failure["attempt"])
            stored = watch.shelf.objects.get(key)
            is_shared = stored is not None and json.loads(stored.body)["is_shared"]
            if is_shared and not failure.get("type"):
                raise broken("I7", f"the loss of its driver counts against {trial_id}: {failure}")


def _counted(ledger: bytes) -> Counter[tuple[str, str, int]]:
    """Return how often each failed attempt is in a ledger, by trial, restore and number."""
    return Counter(
        (trial_id, failure["restore_id"], failure["attempt"])
        for trial_id, history in json.loads(ledger)["trials"].items()
        for failure in (*history.get("failures", ()), *history.get("released", ()))
    )


def _ledger(watch: Invariants) -> dict[str, Any]:
    stored = watch.shelf.objects.get(layout.LEDGER)
    if stored is None:
        return {}
    trials: dict[str, Any] = json.loads(stored.body)["trials"]
    return trials


def check_end(watch: Invariants, airflow: "Airflow") -> None:
    """Check what must hold after a quiet night."""
    i3_every_step_can_be_repeated(watch, airflow)
    i7_failures_are_counted(watch)


def i8_nothing_goes_on_after_its_window(
    watch: Invariants, process: Process, restore: str, grace: float
) -> None:
    """I8: after the end of the window nothing is claimed, and after the grace nothing is trained.

    Only where nothing else goes wrong: a process may freeze between its look at the clock and its claim.
    """
    end = window.parse_end(watch.windows.get(restore, ""))
    if end is None or not watch.is_calm:
        return
    late = (watch.world.wall(watch.shelf.ahead) - end).total_seconds() - grace
    if late > SLACK_SECONDS:
        raise broken("I8", f"{process} goes on {late:.0f} s after the window of {restore}")
