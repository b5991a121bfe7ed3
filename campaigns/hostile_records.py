"""Our own objects, which somebody who may write to the bucket can replace, and all that reads them.

`RECORDS` is made of what `protocol/layout.py` can build. A new key there needs no word here, unless
it takes an argument that `ARGUMENTS` does not have; a directory needs its files in `FILES`.
"""

import asyncio
import contextlib
import inspect
import json
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments.examine import examine
from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.launch.ray.attempt_job import RayAttemptJob
from airflow_tune_restore.launch.ray.cluster import Cluster
from airflow_tune_restore.launch.ray.job_log import JobLog
from airflow_tune_restore.launch.ray.jobs_api import RayJob
from airflow_tune_restore.launch.ray.submission import DriverResources
from airflow_tune_restore.operators.trial_outcome import judge
from airflow_tune_restore.operators.xcom import TrialXCom
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.attempts import AttemptId, AttemptRecords, wait_until_all_over
from airflow_tune_restore.protocol.listed_records import RestoreRecords
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.restore import ledger
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt, claim_next_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.follow import Follower, ask_to_stop
from airflow_tune_restore.restore.own_restore import fresh_restore_id
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.recipes import Recipes
from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.runner.reporter import Reporter
from airflow_tune_restore.runner.tune.result_files import Start, prepare_results
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.triggers import trial_poller
from airflow_tune_restore.version_compat import AirflowException
from campaigns import hostile_inputs as inputs
from campaigns.guards import GuardedStore, RunnerStore
from campaigns.hostile_lab import (
    LONG_AGO,
    RESTORE_ID,
    Lab,
    Objects,
    assert_shown,
    night_options,
    output_of,
)

ARGUMENTS: dict[str, Any] = {"restore_id": RESTORE_ID, "attempt": 1, "epoch": 1}
"""What the builders of keys are given; for `trial_id` they get a trial, and what stands for all."""

UNITS = ("bad", layout.WHOLE_EXPERIMENT)

FILES: dict[str, tuple[str, ...]] = {
    "restore_dir": (),
    "trials_dir": (),
    "attempts_dir": (),
    "stops_dir": (),
    "desk_dir": ("bad@000001.run.json",),
    "trial_dir": ("start-d.json",),
    "attempt_dir": (layout.callbacks_name(layout.KEPT),),
    "searcher_dir": (layout.numbered(1, f"searcher-state-{layout.KEPT}.pkl"),),
}
"""What lies in each directory that `layout` can build and has no key of its own."""

READ_BY_NOBODY: frozenset[str] = frozenset({"seed", "seed of all", "desk_dir bad@000001.run.json"})
"""Nobody here: the runner hands seeds to Ray as they are, and of the desk only names are read."""


def _every_record() -> dict[str, str]:
    """Return a key of every kind there is, by what it is called."""
    found = {}
    for name, value in vars(layout).items():
        if isinstance(value, str) and value.startswith(f"{layout.ROOT}/") and "." in value[1:]:
            found[name.lower()] = value
        if not inspect.isfunction(value) or not name.endswith(("_key", "_dir")):
            continue
        for unit in UNITS if "trial_id" in inspect.signature(value).parameters else UNITS[:1]:
            key = build_key(value, unit)
            suffix = " of all" if unit == layout.WHOLE_EXPERIMENT else ""
            files = FILES[name] if name.endswith("_dir") else None
            for file in files if files is not None else ("",):
                kind = f"{name.removesuffix('_key')} {file}".strip() + suffix
                found[kind] = f"{key}/{file}" if file else key
    return found


def build_key(build: Callable[..., str], unit: str) -> str:
    """Call one of layout's functions."""
    given = {**ARGUMENTS, "trial_id": unit}
    return build(**{name: given[name] for name in inspect.signature(build).parameters})


RECORDS = _every_record()


def records(rng: random.Random, lab: Lab) -> None:
    """One of our own objects replaced, or one of an odd name beside them, and each way of reading it."""
    objects = dict(rng.choice((lab.restored, lab.restored, lab.whole)))
    action = rng.choice(READERS)
    if rng.random() < 0.8:
        kinds = [kind for kind, key in RECORDS.items() if key in objects]
        key = RECORDS[rng.choice(kinds if rng.random() < 0.9 else list(RECORDS))]
        body = objects.get(key, (b'{"a": 1}', LONG_AGO))[0]
        objects[key] = (lab.keep(key, inputs.hostile_json(rng, body)), LONG_AGO)
    else:
        _add_odd_names(rng, lab, objects)
    if rng.random() < 0.5:
        for unit in (*UNITS, "hung"):
            objects.pop(layout.outcome_key(RESTORE_ID, unit, 1), None)
    before = {key: value for key, value in objects.items() if not key.startswith(layout.ROOT)}
    lab.keep("action", action.__name__.encode())
    with contextlib.suppress(TuneRestoreError, AirflowException):
        action(lab, GuardedStore(lab.store(objects)))
    assert action in ENDS or {key: objects[key] for key in before} == before


def _add_odd_names(rng: random.Random, lab: Lab, objects: Objects) -> None:
    text = rng.choice(inputs.TEXTS)
    number = str(rng.choice(inputs.NUMBERS)) if rng.random() < 0.5 else text
    name = rng.choice((number, "9" * rng.choice((8, 18, 19, 20, 200, 5000)), text)).replace(
        "/", "_"
    )
    if (
        rng.random() < 0.2
    ):  # what is saved as `kept` gets its name in the experiment's root from a commit
        name = rng.choice(
            ("experiment_state-kept.json", "callback-states-kept.pkl", "kept", "kept.json")
        )
    unit = rng.choice(UNITS)
    directory = layout.attempts_dir(RESTORE_ID, unit)
    key = rng.choice(
        (
            f"{layout.LEASE}/{name}.claim.json",
            f"{layout.LEASE}/{name}.release.json",
            f"{layout.LEASE}/{name}.heartbeat.json",
            f"{directory}/{name}/request.json",
            f"{directory}/{name}/state.json",
            f"{layout.stops_dir(RESTORE_ID, 1)}/{name}.json",
            f"{layout.searcher_dir(RESTORE_ID, 1)}/{layout.numbered(1, name)}",
            f"{layout.ROOT}/{name}/plan.json",
            f"{layout.ROOT}/{name}/commit.json",
            f"{layout.ROOT}/selftest-{name}",
        )
    )
    lab.keep("key", key.encode("utf-8", "surrogatepass"))
    objects[key] = (b'{"restore_id": "r1"}', LONG_AGO)


def _plan(_lab: Lab, store: ObjectStore) -> None:
    plan = read_plan(store, RESTORE_ID)
    output_of(lambda: output.print_plan(plan, as_json=False))
    read_commit_record(store, RESTORE_ID)
    fresh_restore_id(store, RESTORE_ID)


def _lease(_lab: Lab, store: ObjectStore) -> None:
    for ask in (
        lambda: examine(store),
        lambda: lease.unreleased(store, but="r2"),
        lambda: lease.earlier_restores(store, RESTORE_ID),
        lambda: lease.refuse_if_alive(store, "r2"),
        lambda: lease.renew(store, lease.check_held(store, RESTORE_ID)),
    ):
        with contextlib.suppress(TuneRestoreError):
            ask()


def _acquire(_lab: Lab, store: ObjectStore) -> None:
    held = lease.acquire(store, restore_id="r2", holder="another", ttl_seconds=60)
    assert lease.check_held(store, "r2").epoch == held.epoch
    lease.release(store, held)


def _commit_abandoned(_lab: Lab, store: ObjectStore) -> None:
    commit_abandoned(store, restore_id="r2", holder="another")


def next_night(_lab: Lab, store: ObjectStore, restore_id: str = "r2") -> None:
    """Restore the experiment again: what the night before has left is settled first."""
    options = night_options()
    prepared = prepare_restore(store, restore_id, options)
    if not isinstance(prepared, str):
        start_restore(prepared, holder="test", ttl_seconds=60)


def _claim(_lab: Lab, store: ObjectStore) -> None:
    plan = read_plan(store, RESTORE_ID)
    unit = layout.WHOLE_EXPERIMENT if plan.is_whole_experiment else "bad"
    log: Any = logging.getLogger("airflow_tune_restore")
    request = claim_next_attempt(
        store, plan, unit, RunnerSettings(trainable="m:train"), log=log.info
    )
    assert AttemptRecords(store, RESTORE_ID, unit).numbers()[-1] == request.attempt


def _attempts(_lab: Lab, store: ObjectStore) -> None:
    for unit in UNITS:
        AttemptRecords(store, RESTORE_ID, unit).newest_started()
        for number in AttemptRecords(store, RESTORE_ID, unit).numbers():
            _read_attempt(store, unit, number)


def _read_attempt(store: ObjectStore, unit: str, number: int) -> None:
    records = AttemptRecords(store, RESTORE_ID, unit)
    request = layout.request_key(RESTORE_ID, unit, number)
    for ask in (
        lambda: read_record(store, request, RunnerRequest.from_json),
        lambda: records.outcome(number),
        lambda: records.exit(number, infer_from_heartbeat=True),
        lambda: wait_until_all_over(
            store, [AttemptId(RESTORE_ID, unit, number)], patience_seconds=100
        ),
    ):
        with contextlib.suppress(TuneRestoreError):
            ask()


def _ledger(_lab: Lab, store: ObjectStore) -> None:
    plan = read_plan(store, RESTORE_ID)
    for trial in plan.to_run:
        history = ledger.read_history(store, plan, trial.trial_id)
        assert_shown(history.quarantine_reason(1))
        ledger.memory_to_ask(plan, trial.trial_id, history)
    ledger.record_failures(store, plan, RestoreRecords(store, RESTORE_ID))


def _judge(_lab: Lab, store: ObjectStore) -> None:
    """A trial's task at its end: what it shows, and what it hands on as XCom."""
    plan = read_plan(store, RESTORE_ID)
    outcome = AttemptRecords(store, RESTORE_ID, "bad").outcome()
    if outcome is None:
        return
    item = TrialXCom(experiment="x", restore_id=RESTORE_ID, trial_id="bad")
    log: Any = logging.getLogger("airflow_tune_restore")
    try:
        summary = judge(store, plan, item, outcome, log=log)
    except AirflowException as error:
        assert_shown(str(error))
    else:
        check_xcom(summary)


def check_xcom(value: Any, trials: int = 1) -> None:
    """Check that what is handed on is small, can be read by anybody, and can be shown."""
    text = json.dumps(value, allow_nan=False)
    assert len(text) < 50_000 * (1 + trials), f"an XCom of {len(text)} bytes"
    for told in _texts(value):
        assert_shown(told)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in (*value, *value.values()) for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _follow(lab: Lab, store: ObjectStore) -> None:
    """A task that follows its trial in the run of all, and starts the run if nobody does."""

    def start(attempt: int) -> None:
        plan = read_plan(store, RESTORE_ID)
        claim_attempt(
            store,
            plan,
            layout.WHOLE_EXPERIMENT,
            RunnerSettings(trainable="m:train"),
            attempt=attempt,
        )
        raise KeyNotFoundError(store.uri, "the end of this test")

    for unit in UNITS:
        follower = Follower(
            *(store, RESTORE_ID, unit, start),
            monotonic=lab.clock.monotonic,
            sleep=lab.clock.sleep,
        )
        for report in follower.progress():
            if report is not None:
                assert_shown(output_of(lambda: print(report.to_line().isascii())).strip())  # noqa: B023
    ask_to_stop(store, RESTORE_ID, "bad")


def _watch(lab: Lab, store: ObjectStore) -> None:
    """A triggerer's look at what trials report."""
    del lab

    class Hook:
        def open(self, _address: str) -> ObjectStore:
            return store

        def reconnect(self) -> None:
            pass

    async def look() -> None:
        trial = trial_poller.TrialWatch(trial_id="bad", attempt=1, ends_with_outcome=True)
        async with trial_poller.TrialPoller.watch(trial, "x", RESTORE_ID):
            (watch,) = trial_poller.TrialPoller._all.values()
            watch._renewed = float("-inf")
            await watch._round()

    real, trial_poller.share_hook = trial_poller.share_hook, Hook  # type: ignore[assignment]
    try:
        asyncio.run(look())
    finally:
        trial_poller.share_hook = real


class _Jobs:
    """A Ray cluster that is asked for jobs, of which it knows one, or has lost all."""

    cluster = Cluster(address="http://head:8265")

    def __init__(self, *jobs: RayJob) -> None:
        self._jobs = jobs

    def find(self, submission_id: str) -> RayJob | None:
        del submission_id
        return self._jobs[0] if self._jobs else None

    def read_log(self, submission_id: str, log: JobLog) -> None:
        del submission_id
        log.take("said\n")
        log.end()

    def submit(self, submission: Any) -> bool:
        json.dumps(submission)
        return True


def _ray_run(_lab: Lab, store: ObjectStore) -> None:
    """A trial's task with a Ray cluster: whether it attaches or starts a job, and how that ended."""
    for status in ("SUCCEEDED", "RUNNING", None):
        run = RayAttemptJob(
            jobs=_Jobs(*([RayJob(status=status)] if status else [])),  # type: ignore[arg-type]
            store=store,
            plan=read_plan(store, RESTORE_ID),
            trial_id="bad",
            settings=RunnerSettings(trainable="m:train", reports=True),
            runtime_env={},
            env={},
            driver=DriverResources(),
            poll_interval=0.0,
            log=logging.getLogger("airflow_tune_restore"),
        )
        run.find_final_outcome()
        with contextlib.suppress(TuneRestoreError, AirflowException):
            run._attach_to(1)
        with contextlib.suppress(TuneRestoreError, AirflowException):
            run.get_job_result(1, {})


def _runner(_lab: Lab, store: ObjectStore) -> None:
    """What a runner reads beside Ray's own files."""
    for unit in UNITS:
        request = RunnerRequest(
            experiment="x", restore_id=RESTORE_ID, trial_id=unit, attempt=1, trainable="m:t",
            trainable_name="t", action="resume", trim_results=True,
        )  # fmt: skip
        Reporter(store, request)._read_stop_requests()
        rows = RunnerStore(store)
        rows.put("d/result.json", b'{"training_iteration": 1}\n{"training_iteration": 2}\n')
        with contextlib.suppress(TuneRestoreError):
            prepare_results(rows, request, "d", Start("checkpoint_000001", 1))


def _undo(_lab: Lab, store: ObjectStore) -> None:
    """A commit is taken back, and what was committed by it again is not lost."""
    commit_restore(store, RESTORE_ID)
    undo_commit(store, holder="test")
    with contextlib.suppress(TuneRestoreError):
        undo_commit(store, holder="test")


def _release(_lab: Lab, store: ObjectStore) -> None:
    for trial_id in ("hung", "bad"):
        with contextlib.suppress(TuneRestoreError):
            release_trials(store, [trial_id], holder="test")


def commit(_lab: Lab, store: ObjectStore) -> None:
    """Commit the restore, and check that no row of another trial has changed."""
    plan = read_plan(store, RESTORE_ID)
    base = read_base(store)
    summary = commit_restore(store, RESTORE_ID)
    output_of(lambda: output.print_summary(summary, experiment="x", as_json=False))
    output_of(lambda: output.print_summary(summary, experiment="x", as_json=True))
    if summary.state_file is not None:
        committed = read_base(store)
        assert committed.state_file.name == summary.state_file
        ran = {trial.trial_id for trial in plan.to_run}
        drawn = committed.state.rows.keys() - base.state.rows.keys()
        assert base.state.rows.keys() <= committed.state.rows.keys()
        assert (
            plan.continues_search or not drawn
        )  # of a run that draws, whatever else it left is drawn
        for trial_id, row in base.state.rows.items():
            assert trial_id in ran or committed.state.rows[trial_id] == row
    assert commit_restore(store, RESTORE_ID) == summary


def _recipe(_lab: Lab, store: ObjectStore) -> None:
    """Plan by the sweep's own recipe: it is used as it is, or not at all."""
    for modules in (True, ["team_a.*"]):
        recipes = Recipes.parse({"*": "others:train"}, recipes=modules)
        options = replace(night_options(), recipes=recipes)
        try:
            prepared = prepare_restore(store, "r2", options)
        except TuneRestoreError as error:
            assert_shown(str(error))
        else:
            # one that has started, by a plan that lies there, is not planned again
            is_planned = not isinstance(prepared, str) and not prepared.is_started
            assert not is_planned or prepared.options.recipe is not None


READERS: tuple[Callable[[Lab, ObjectStore], None], ...] = (
    _plan, _lease, _acquire, _commit_abandoned,
    next_night, _claim, _attempts, _ledger, _judge, _follow, _watch,
    _ray_run, _runner, _undo, _release, _recipe, commit, commit,
)  # fmt: skip

ENDS = (_runner,)
"""Readers that may write what is Ray's: the runner trims the rows of its own trial."""
