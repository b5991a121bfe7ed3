"""Whole restores of hostile experiments: alone, at odd times, and beside a good one."""

import contextlib
import functools
import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    LeaseHeldError,
    TuneRestoreError,
)
from airflow_tune_restore.experiments.examine import examine
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.state import State
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.operators import commit_restore, prepare_restores
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.protocol import layout, lease_objects
from airflow_tune_restore.restore import claim
from airflow_tune_restore.restore.claim import RunnerSettings
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.version_compat import AirflowException
from campaigns import hostile_inputs as inputs
from campaigns.guards import GuardedStore
from campaigns.hostile_lab import (
    BAD,
    DONE,
    GOOD,
    LONG_AGO,
    NOW,
    RESTORE_ID,
    Lab,
    Objects,
    assert_shown,
    moved,
    night_options,
    output_of,
    spoil,
)
from campaigns.hostile_records import READERS, RECORDS, check_xcom, commit, next_night
from tests.support.airflow.context import make_context
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import beat, leave_attempt, make_outcome


def a_restore(rng: random.Random, lab: Lab) -> None:
    """A whole restore of a hostile experiment, by a runner that may leave hostile things, too."""
    objects = {
        k: v
        for k, v in spoil(rng, lab, BAD).items()
        if "/checkpoint_" not in k or rng.random() < 0.9
    }
    before = dict(objects)
    store = GuardedStore(lab.store(objects).at("team").at("bad"))
    options = night_options(allow_scratch=rng.random() < 0.5)
    with contextlib.suppress(TuneRestoreError):
        prepared = prepare_restore(store, RESTORE_ID, options)
        if isinstance(prepared, str):
            return
        plan, _ = start_restore(prepared, holder="test", ttl_seconds=60)
        assert plan is not None
        assert read_plan(store, RESTORE_ID) == plan
        for trial in plan.to_run[:3]:
            _pretend_to_run(rng, lab, store, plan, trial.trial_id)
        commit(lab, store)
    for key, value in before.items():
        assert objects[key] == value, f"{key} was changed"


def _pretend_to_run(
    rng: random.Random, lab: Lab, store: ObjectStore, plan: RestorePlan, trial_id: str
) -> None:
    """Do what a runner does; what it leaves may be hostile."""
    request = claim.claim_attempt(store, plan, trial_id, RunnerSettings(trainable="m:train"))
    where = (plan.restore_id, trial_id, request.attempt)
    final = trial_id if trial_id == layout.WHOLE_EXPERIMENT else plan.trial(trial_id).final_trial_id
    snapshot = make_state([make_row(final, last_result={"training_iteration": 6})])
    done = make_outcome(request, final_trial_id=final, **DONE).to_json()
    if rng.random() < 0.5:
        snapshot = lab.keep("snapshot.json", inputs.hostile_json(rng, snapshot))
    if rng.random() < 0.3:
        done = lab.keep("outcome.json", inputs.hostile_json(rng, done))
    store.put(layout.snapshot_key(*where), snapshot)
    store.put(layout.outcome_key(*where), done)


# A good experiment beside a bad one.


def nights(rng: random.Random, lab: Lab) -> None:
    """A night over a bad experiment and a good one, through the real operators."""
    objects = dict(lab.golden)
    objects.update(rng.choice((_spoilt, _spoilt, _half_restored))(rng, lab))
    if rng.random() < 0.2:
        for key in rng.sample(sorted(moved(objects, "", "")), 3):
            if key.startswith(BAD):
                objects[key] = (objects[key][0], _odd_time(rng))
    before = dict(objects)
    prefix = lab.store(objects)
    assert lab.good_report in scan(GuardedStore(prefix, writable=False))
    a_night(rng, lab, {f"/{place}": GuardedStore(prefix.at(place)) for place in (GOOD, BAD)})
    for key, value in before.items():
        assert f"/{layout.ROOT}/" in key or objects[key] == value, f"{key} was changed"


def _spoilt(rng: random.Random, lab: Lab) -> Objects:
    return spoil(rng, lab, BAD)


def _half_restored(rng: random.Random, lab: Lab) -> Objects:
    """Return an experiment whose restore was given up, some of its records hostile."""
    objects = dict(rng.choice((lab.restored, lab.whole)))
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = RECORDS[rng.choice([kind for kind, key in RECORDS.items() if key in objects])]
        objects[key] = (lab.keep(key, inputs.hostile_json(rng, objects[key][0])), LONG_AGO)
    if rng.random() < 0.3:
        objects.pop(layout.commit_key(RESTORE_ID), None)
    return moved(objects, "", f"{BAD}/")


class Hook:
    """Opens what a test has made, by the addresses that it gave to the operators."""

    def __init__(self, stores: Mapping[str, ObjectStore]) -> None:
        self._stores = stores

    def __call__(self, storage_conn_id: str | None = None) -> "Hook":
        del storage_conn_id
        return self

    def address(self, text: str) -> Address:
        return Address.parse(text)

    def open(self, address: str | Address) -> ObjectStore:
        return self._stores[str(address)]


def a_night(rng: random.Random, lab: Lab, stores: Mapping[str, ObjectStore]) -> None:
    """Plan, run and commit what can be restored; the one whose address ends in `good` must be.

    Args:
        stores: By address.
    """
    (good,) = [address for address in stores if address.endswith("good")]
    base = read_base(stores[good]).state
    context = make_context()
    with (
        mock.patch.object(prepare_restores, "ExperimentStorageHook", Hook(stores)),
        mock.patch.object(commit_restore, "ExperimentStorageHook", Hook(stores)),
    ):
        order = sorted(stores, reverse=rng.random() < 0.5)
        operator = BuildRestorePlanOperator(
            task_id="plan", experiments=order, resume_errored=True, stale_after=0,
            strategy=rng.choice(("auto", "per_trial")), allow_scratch=True,
        )  # fmt: skip
        items = executed(lab, operator, context)
        check_xcom(items, len(items))
        outcomes = context["ti"].pushed["outcomes"]
        check_xcom(outcomes, len(outcomes))
        restores = [each for each in outcomes if each["outcome"] == "restored"]
        _run_trials(rng, lab, stores, restores, good)
        committing = make_context()
        try:
            done = executed(
                lab, CommitRestoreOperator(task_id="commit", outcomes=outcomes), committing
            )
        except AirflowException as error:
            assert_shown(str(error), most=None)
            done = committing["ti"].pushed["return_value"]
        check_xcom(done, sum(len(one.get("trials", ())) for one in done))
    (state_file,) = [one["state_file"] for one in done if one["experiment"] == good]
    assert state_file is not None
    _check_committed(stores[good], base, {i["trial_id"] for i in items if i["experiment"] == good})


def executed(lab: Lab, operator: Any, context: Any) -> Any:
    operator._cached_logger = lab.logger
    return operator.execute(context)


def _run_trials(
    rng: random.Random,
    lab: Lab,
    stores: Mapping[str, ObjectStore],
    restores: list[dict[str, str]],
    good: str,
) -> None:
    assert good in [restore["experiment"] for restore in restores], "the good one is not planned"
    for restore in restores:
        store = stores[restore["experiment"]]
        is_good = restore["experiment"] == good
        with contextlib.nullcontext() if is_good else contextlib.suppress(TuneRestoreError):
            plan = read_plan(store, restore["restore_id"])
            for trial in plan.to_run if is_good else plan.to_run[:3]:
                unit = layout.WHOLE_EXPERIMENT if plan.is_whole_experiment else trial.trial_id
                if is_good:
                    leave_attempt(store, plan, unit, iteration=6)
                else:
                    _pretend_to_run(rng, lab, store, plan, unit)


def _check_committed(store: ObjectStore, base: State, ran: set[str]) -> None:
    """Check that what ran has ended in a committed state, and that no other trial has changed."""
    after = read_base(store)
    assert layout.is_committed_state(after.state_file.name), after.state_file.name
    assert ran
    assert after.state.rows.keys() == base.rows.keys()
    for trial in after.trials:
        if trial.trial_id in ran:
            assert (trial.status, trial.last_result["training_iteration"]) == ("TERMINATED", 6)
        else:
            assert after.state.rows[trial.trial_id] == base.rows[trial.trial_id]
    entries = store.list_dir(layout.LEASE)
    held = lease_objects.newest_claim(store, entries)
    assert held is not None
    assert lease_objects.is_released(entries, held.epoch)
    assert examine(store, stale_after=timedelta(0)).health is Health.FINISHED


# Times that cannot be.

_TIMES: tuple[Any, ...] = (
    None, *(datetime(year, 1, 2, tzinfo=UTC) for year in (1, 1601, 1900, 1970, 2038, 2100, 9999)),
    datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC), LONG_AGO, NOW,
    *(NOW + timedelta(seconds=seconds) for seconds in (-61, -59, -1, 1, 5, 59, 120, 3600, 86400)),
)  # fmt: skip
_TTLS = (
    *inputs.NUMBERS, 60, 0.001, 86400, 86399.99, 86401, 3 * 86400, "60", None, True, [], {},
)  # fmt: skip
_MANY_CLAIMS = 100
MOST_READS = 25
"""How often a plan is read in a night at most, however often somebody names its restore."""


def times(rng: random.Random, lab: Lab) -> None:
    """Odd dates, claims and clocks that jump: nobody waits long, nothing is held for ever."""
    objects = dict(rng.choice((lab.restored, lab.whole, moved(lab.golden, f"{GOOD}/", ""))))
    among = rng.choice(("", layout.LEASE, layout.ROOT, "experiment_state", "tuner.pkl", "train_"))
    for key in objects:
        if key.startswith(among) and rng.random() < 0.6:
            objects[key] = (objects[key][0], _odd_time(rng))
    if rng.random() < 0.5:
        _add_claims(rng, lab, objects)
    lab.keep("times", str({key: str(at) for key, (_, at) in objects.items()}).encode())
    if rng.random() < 0.3:
        lab.clock.wall = lambda: (
            NOW + timedelta(seconds=rng.choice((0, 1, 61, -3600, 3e6, -3e9, 3e9)))
        )
    store = GuardedStore(lab.store(objects))
    for read in rng.sample(READERS, 2):
        with contextlib.suppress(TuneRestoreError, AirflowException):
            read(lab, store)
    _check_free(lab, store)


def _odd_time(rng: random.Random) -> Any:
    return rng.choice(_TIMES)


def _add_claims(rng: random.Random, lab: Lab, objects: Objects) -> None:
    count = _MANY_CLAIMS if rng.random() < 0.05 else rng.choice((1, 2, 5))
    for epoch in range(2, 2 + count):
        named = rng.choice((RESTORE_ID, RESTORE_ID, "r9", "undo-r1", rng.choice(inputs.TEXTS)))
        claim = {"restore_id": named, "holder": "x", "ttl_seconds": rng.choice(_TTLS)}
        body = lab.keep(f"claim {epoch}", json.dumps(claim).encode())
        objects[layout.lease_claim_key(epoch)] = (body, _odd_time(rng))


def _check_free(lab: Lab, store: GuardedStore) -> None:
    """Check that three days later a restore begins, or is refused for another reason than a holder."""
    lab.clock.wall = lambda: NOW + timedelta(days=3)
    lab.clock.slept = 0.0
    store.reads.clear()
    try:
        next_night(lab, store, "r3")
    except (ExperimentRunningError, LeaseHeldError) as error:
        raise AssertionError(f"it is held for ever: {error}") from error
    except TuneRestoreError as error:
        told = error
        output_of(lambda: output.print_error(told))
    often = {key: reads for key, reads in store.reads.items() if "plan.json" in key}
    assert max(often.values(), default=0) <= MOST_READS, often


# Many trials whose runners died without a word.

_MANY_TRIALS = 300
MOST_TOGETHER_SECONDS = 180.0
"""One lease of a minute and one runner's silence, twice over: not one silence for each trial."""


@functools.cache
def _abandoned() -> Objects:
    """Return an experiment whose restore died while all its runners ran."""
    objects: Objects = {}
    store = MemoryStore(objects, clock=lambda: LONG_AGO)
    rows = [make_row(f"t{number:05d}", status="ERROR") for number in range(_MANY_TRIALS)]
    store.put(STATE_NAME, make_state(rows))
    options = night_options()
    prepared = prepare_restore(store, RESTORE_ID, options)
    assert not isinstance(prepared, str)
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=60)
    assert plan is not None
    for trial in plan.to_run:
        beat(
            store,
            claim.claim_attempt(store, plan, trial.trial_id, RunnerSettings(trainable="m:train")),
        )
    return objects


def many_trials(rng: random.Random, lab: Lab) -> None:
    """A restore of many trials that died as a whole: all of them are watched at once."""
    objects = dict(_abandoned())
    for key in list(objects):
        if "heartbeat" in key and rng.random() < 0.1:
            objects[key] = (objects[key][0], _odd_time(rng))
    next_night(lab, GuardedStore(lab.store(objects)))
    assert lab.clock.slept < MOST_TOGETHER_SECONDS, f"{lab.clock.slept:.0f} s are waited"
