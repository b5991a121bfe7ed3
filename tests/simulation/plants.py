"""The planted mistakes, with the seeds of worlds in which the simulation finds them.

After a change of the code or of the simulation, a seed may not find its mistake any more: then the test
searches from there on. `python -m tests.simulation --plants` searches from the first world.
"""

from airflow_tune_restore.experiments import health
from airflow_tune_restore.protocol import attempts, layout, lease, lease_watch
from airflow_tune_restore.restore import (
    abandoned,
    claim,
    commit,
    committed_attempts,
    committed_state,
    ledger,
    prepare,
    release,
    shared_driver,
    start,
    undo,
)
from airflow_tune_restore.restore.follow import Follower
from airflow_tune_restore.restore.follow_shared import SharedFollower
from airflow_tune_restore.restore.history import History
from airflow_tune_restore.restore.snapshots import Snapshots
from airflow_tune_restore.runner.attempt import Attempt
from airflow_tune_restore.runner.heartbeat import Heartbeat, _Beats
from airflow_tune_restore.runner.pause import PauseTimer
from airflow_tune_restore.runner.tune import result_files
from tests.simulation.campaign import simulating, world_seeds
from tests.simulation.planting import Edit, Found, Plant, find
from tests.simulation.runner import TrialTraining, WholeTraining

_OF_RUNNERS = (
    Plant(
        "first heartbeat late",
        "A runner looks for newer attempts and trains; its first heartbeat comes some seconds later.",
        "I4",
        (Edit(Heartbeat.start, "    self._own.create_first()\n"),),
        seed=12,
    ),
    Plant(
        "an attempt has two runners",
        "Two tasks can claim the same attempt, and both runners of it start.",
        "I4",
        (
            Edit(claim.claim_attempt, "store.create(key,", "store.put(key,"),
            Edit(_Beats.create_first, "self._store.create(", "self._store.put("),
        ),
        seed=0,
    ),
    Plant(
        "runner never overdue",
        "A runner that was frozen goes on though others took it for dead.",
        "I4",
        (Edit(Heartbeat._end_if_overdue, "* 2 / 3", "* 1000"),),
        seed=1020,
    ),
    Plant(
        "no fence",
        "A runner neither looks whether a newer attempt or restore has started, nor renews the lease.",
        "I5",
        (Edit(Heartbeat.check_or_end, "self.check()", "self._looked_at = time.monotonic()"),),
        seed=108,
    ),
    Plant(
        "runner does not renew",
        "A runner does not renew the lease.",
        "I5",
        (
            Edit(
                Heartbeat.check,
                "lease.renew(self._store, self._read_lease())",
                "self._read_lease()",
            ),
        ),
        seed=108,
    ),
    Plant(
        "earlier attempts not awaited",
        "A runner does not wait until the runners of earlier attempts have ended.",
        "I4",
        (Edit(Attempt._wait_for_earlier, "attempt < self._request.attempt", "False"),),
        seed=19,
    ),
    Plant(
        "oldest snapshot",
        "A runner starts from the oldest snapshot.",
        "I3",
        (
            Edit(
                Attempt._newest_snapshot,
                "reversed(self._attempts.numbers())",
                "self._attempts.numbers()",
            ),
        ),
        seed=282,
    ),
    Plant(
        "outcome before snapshot",
        "The run of all trials records that a trial has ended before it saves the snapshot.",
        "I3",
        (
            Edit(
                WholeTraining._save_whole,
                "        if prepares:",
                "        self._after_snapshot()\n        if prepares:",
            ),
        ),
        seed=7,
    ),
    Plant(
        "last snapshot may fail",
        "A trial is recorded as finished though its last snapshot could not be saved.",
        "I3",
        (Edit(TrialTraining.run, "self.save(must=True)", "self.save()"),),
        seed=1321,
    ),
    Plant(
        "rows stay",
        "The result rows that a trial reports again are not dropped.",
        "I3",
        (Edit(result_files.prepare_results, "if trimmed == text:", "if True:"),),
        seed=5,
    ),
)

_OF_THE_LEASE = (
    Plant(
        "lease by put",
        "Two restores can take the lease at the same epoch.",
        "I5",
        (Edit(lease.acquire, "store.create(key,", "store.put(key,"),),
        seed=29,
    ),
    Plant(
        "dead at once",
        "A holder that is not known to live counts as dead without a watch.",
        "I5",
        (Edit(lease_watch.wait_for_death, "    current =", "    return\n    current ="),),
        seed=14,
    ),
    Plant(
        "quiet at once",
        "A runner counts as dead at the first look at its heartbeat.",
        "I4",
        (Edit(attempts.wait_until_all_over, "< QUIET_SECONDS", "< 0"),),
        seed=309,
    ),
    Plant(
        "release not written",
        "A lease is never released.",
        "I3",
        (
            Edit(
                lease.release, "store.put(layout.lease_release_key(lease.epoch), body)", "del body"
            ),
        ),
        seed=1,
    ),
)

_OF_PLANS = (
    Plant(
        "plan before seeds",
        "The plan is written before the seeds of its trials.",
        "I3",
        (
            Edit(
                start._write,
                "    for_each(write_seed, ",
                "    with contextlib.suppress(KeyExistsError):\n"
                "        store.create(layout.plan_key(plan.restore_id), body)\n"
                "    for_each(write_seed, ",
            ),
        ),
        seed=0,
    ),
    Plant(
        "part of another trial",
        "A seed has the part of the plan for another trial than its own.",
        "I3",
        (Edit(start._seed, "plan.part_of(trial)", "plan.part_of(plan.to_run[-1])"),),
        seed=0,
    ),
    Plant(
        "driver not seen",
        "An experiment that was written to just now counts as dead.",
        "I6",
        (
            Edit(
                health.judge,
                "Health.INTERRUPTED if silent else Health.RUNNING",
                "Health.INTERRUPTED",
            ),
        ),
        seed=20,
    ),
    Plant(
        "base not checked",
        "Neither a plan nor a commit looks whether the state has changed since the plan was made.",
        "I1",
        (
            Edit(start._write_under_lease, "newest.sha256 != plan.base.sha256", "False"),
            Edit(commit._check_base, "file.sha256 != plan.base.sha256", "False"),
        ),
        seed=884,
    ),
    Plant(
        "nothing settled",
        "The work of a dead restore is not committed.",
        "I3",
        (
            Edit(
                abandoned._settle,
                "    try:\n        record =",
                "    return None\n    try:\n        record =",
            ),
        ),
        seed=14,
    ),
    Plant(
        "released before settled",
        "The lease of a dead restore is released before its work is committed, and none that was "
        "released is looked at.",
        "I3",
        (
            Edit(abandoned._left_behind, "last is not None", "False"),
            Edit(
                abandoned.commit_abandoned,
                "        wait_for_runners(",
                "        for leases in abandoned.values():\n"
                "            lease.release_all(store, leases)\n"
                "        wait_for_runners(",
            ),
        ),
        seed=116,
    ),
)

_OF_COMMITS = (
    Plant(
        "commit without record",
        "A commit does not create its record before its state.",
        "I2",
        (
            Edit(
                commit._write_record,
                "store.create(layout.commit_key(plan.restore_id), encode(record))",
                "pass",
            ),
        ),
        seed=72,
    ),
    Plant(
        "same start time",
        "The start time of a commit can be that of the state before it.",
        "I1",
        (Edit(commit._start_time, " + 0.001"),),
        seed=0,
    ),
    Plant(
        "runners not awaited",
        "A commit does not wait until no runner lives, and a runner does not look for it.",
        "I3",
        (
            Edit(Heartbeat._read_lease, "if is_listed(", "if False and is_listed("),
            Edit(
                committed_attempts.wait_for_runners,
                "wait_until_all_over(store, started, patience_seconds=PATIENCE_SECONDS)",
                "([], [])",
            ),
        ),
        seed=471,
    ),
    Plant(
        "walk before the record",
        "A commit takes what it has listed before its record, while a runner still saved.",
        "I3",
        (
            Edit(
                committed_attempts.settle_late_attempts,
                "    records.list_again()\n    if over is None",
                "    if over is None",
            ),
        ),
        seed=394,
    ),
    Plant(
        "oldest snapshot committed",
        "A commit takes the oldest snapshot of a trial.",
        "I3",
        (
            Edit(
                Snapshots._read,
                "reversed(numbers)",
                "numbers",
            ),
        ),
        seed=13,
    ),
    Plant(
        "commit does not sort last",
        "The name of a second commit does not sort after that of the first.",
        "I3",
        (Edit(layout.committed_state_name, 'int(match["number"] or 0) + 1', "1"),),
        seed=1,
    ),
    Plant(
        "searcher before state",
        "The state of the searcher is written before the state that it belongs to.",
        "I2",
        (
            Edit(
                commit.write_commit,
                "            _put_state(",
                "            found = msgspec.structs.replace(record, attempts=snapshots.attempts)\n"
                "            committed_state.put_searcher(store, plan, found, snapshots)\n"
                "            _put_state(",
            ),
        ),
        seed=0,
    ),
    Plant(
        "rows left out",
        "A commit leaves out the rows of trials that were not restored.",
        "I1",
        (
            Edit(
                committed_state.build,
                "        writer.add(row)\n",
                "        if trial.runs:\n            writer.add(row)\n",
            ),
        ),
        seed=0,
    ),
)

_OF_THE_REST = (
    Plant(
        "undo deletes first",
        "An undo deletes the state, and marks the record of its commit afterwards.",
        "I2",
        (
            Edit(
                undo.undo_commit,
                "        record = _mark(",
                "        _delete_added(held_store, files, record)\n        record = _mark(",
            ),
        ),
        seed=6,
    ),
    Plant(
        "undo never finished",
        "A restore goes on from a state that an undo had begun to delete.",
        "I2",
        (Edit(undo.finish, "if not is_cut_off(store, undo_id, files):", "if True:"),),
        seed=132,
    ),
    Plant(
        "ledger counts twice",
        "A commit that is repeated counts its failures again.",
        "I7",
        (
            Edit(
                History.with_failures,
                "tuple(f for f in self.failures if f.restore_id != restore_id)",
                "self.failures",
            ),
        ),
        seed=1,
    ),
    Plant(
        "ledger not written",
        "Failures are not recorded.",
        "I7",
        (Edit(ledger.record_failures, "write_ledger(store, recorded)", "pass"),),
        seed=16,
    ),
    Plant(
        "released failures forgotten",
        "A release deletes the failures of a trial.",
        "I7",
        (Edit(release._released, "history.released + history.failures", "history.released"),),
        seed=37,
    ),
)

_OF_WINDOWS = (
    Plant(
        "claims after the window",
        "Attempts are claimed after the window of their restore has ended.",
        "I8",
        (Edit(claim._refuse_if_paused, "if not plan.pause_at:", "if True:"),),
        seed=98,
    ),
    Plant(
        "runner never pauses",
        "A runner trains on after the end of its window.",
        "I8",
        (Edit(PauseTimer._run, "_sleep_until(deadline)", "_sleep_until(deadline + 86400.0)"),),
        seed=98,
    ),
)

_OF_SHARED_DRIVERS = (
    Plant(
        "shared attempt begun twice",
        "A driver does not create the first heartbeat of an attempt exclusively.",
        "I4",
        (Edit(Heartbeat.join, "beats.create_first()", "beats.write()"),),
        seed=170,
    ),
    Plant(
        "shared driver not awaited",
        "A trial that a shared driver has begun runs alone at once; nobody waits until it is silent.",
        "I4",
        (Edit(SharedFollower._look, "and quiet_seconds > QUIET_SECONDS", ""),),
        seed=4,
    ),
    Plant(
        "shared trials not kept alive",
        "A driver writes no heartbeats for the trials that it runs, only its own.",
        "I4",
        (Edit(Heartbeat.beat, "*self._in_work.values(), ", ""),),
        seed=70,
    ),
    Plant(
        "next driver taken for the last",
        "A driver that has begun a trial since the look at the newest driver counts as ended.",
        "I4",
        (Edit(shared_driver.leave_ended_driver, "max(numbers, default=0) > ended", "not numbers"),),
        seed=196,
    ),
)

_FOUND_BY_SIMULATION = (
    Plant(
        "dead restore left alone",
        "A restore that died is not settled if nothing else is to do.",
        "I3",
        (Edit(abandoned.has_left_work, "any(_has_uncommitted_work(store, dead)", "any(not dead"),),
        seed=187,
    ),
    Plant(
        "run of an ended restore",
        "A follower starts the run of all trials again, although its restore has ended.",
        "I7",
        (
            Edit(
                Follower._look,
                "lease.keep_alive(self.store, self.restore_id)",
                "pass",
            ),
            Edit(claim.claim_attempt, "_refuse_if_committed(store, plan, unit)", "pass"),
        ),
        seed=870,
    ),
    Plant(
        "samples left for tomorrow",
        "After a settlement, the samples that are left are not planned.",
        "I3",
        (Edit(prepare.plan_again, "or not again.samples_left", "or True"),),
        seed=13,
    ),
)
"""Faults that the product had, put back."""

PLANTS = {
    plant.name: plant
    for plant in (
        *_OF_RUNNERS,
        *_OF_THE_LEASE,
        *_OF_PLANS,
        *_OF_COMMITS,
        *_OF_THE_REST,
        *_OF_WINDOWS,
        *_OF_SHARED_DRIVERS,
        *_FOUND_BY_SIMULATION,
    )
}


def search(task: tuple[str, int]) -> tuple[str, Found | None]:
    """Search for a plant, by its name, in the worlds of a campaign, by its seed."""
    name, seed = task
    with simulating():
        return name, find(PLANTS[name], world_seeds(seed))
