"""The preview of a plan says what a restore would do, as strict JSON, and writes nothing."""

import json
import math
from itertools import product

import pytest

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    StateUnreadableError,
    TuneRestoreError,
)
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.lease_objects import HolderStatus
from airflow_tune_restore.restore.prepare import preview_restore
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.views import plan as views_plan
from airflow_tune_restore.views.plan import PlanSwitches, view_plan
from tests.support.experiments.built import KILLED, STATE_NAME, make_row, make_state
from tests.support.planted import LONG, check_sent
from tests.support.records import night, start_night

DONE = make_row("done", last_result={"training_iteration": 4, "done": True}, last_result_time=4.0)
BAD = make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 2})
HUNG = make_row("hung", status="RUNNING", last_result={"training_iteration": 3})
LOST = make_row("lost", status="ERROR", checkpoint=True)


def store_with(*rows):
    store = MemoryStore()
    store.put("tuner.pkl", (KILLED / "tuner.pkl").read_bytes())
    store.put(STATE_NAME, make_state(list(rows)))
    return store


def seen(store, **switches):
    """Return the preview; the experiment is dead unless the test says something else."""
    view = view_plan(store, PlanSwitches(**{"stale_after": 0, **switches}))
    json.dumps(view, allow_nan=False)
    check_sent(view, trials=len(view["trials"]))
    return view


def test_the_trials_that_run_come_first_and_each_switch_that_would_run_others_is_named():
    view = seen(store_with(DONE, BAD, HUNG))
    first = view["trials"][0]
    assert (first["trial_id"], first["action"]) == ("hung", "resume")
    assert (view["to_run"], view["total"], view["hidden"]) == (1, 3, 0)
    assert view["counts"] == {"to run": 1, "that stay as they are": 2}
    assert view["kept"] == [
        "1 ERROR trial stays as it is: resume_errored or restart_errored would run it"
    ]
    (bad,) = (t for t in view["trials"] if t["trial_id"] == "bad")
    assert (bad["runs_with"], bad["iteration"]) == ("resume_errored", None)


@pytest.mark.parametrize("on", list(product([False, True], repeat=3)))
@pytest.mark.parametrize("allow_scratch", [False, True])
def test_every_setting_of_the_switches_accounts_for_every_trial_once(on, allow_scratch):
    names = ("resume_unfinished", "resume_errored", "restart_errored")
    switches = dict(zip(names, on, strict=True)) | {"allow_scratch": allow_scratch}
    store = store_with(DONE, BAD, HUNG, LOST)
    view = seen(store, **switches)
    plan, _ = preview_restore(store, PlanSwitches(**switches, stale_after=0).options())
    assert sum(view["counts"].values()) == view["total"] == len(view["trials"]) == 4
    assert view["counts"].get("to run", 0) == view["to_run"] == len(plan.to_run)
    assert {t["trial_id"] for t in view["trials"][: view["to_run"]]} == {
        t.trial_id for t in plan.to_run
    }


def test_a_quarantined_trial_is_counted_apart():
    store = store_with(DONE, BAD)
    night(store, "r1", iteration=2)
    night(store, "r2", iteration=2)
    view = seen(store, resume_errored=True)
    assert view["counts"]["in quarantine"] == 1
    (bad,) = (t for t in view["trials"] if t["trial_id"] == "bad")
    assert bad["quarantined"]


def test_a_preview_writes_nothing():
    store = store_with(DONE, BAD, HUNG)
    before = dict(store._objects)
    seen(store, resume_errored=True)
    assert store._objects == before


def test_what_would_refuse_the_restore_now_is_said_beside_the_plan():
    store = store_with(DONE, BAD)
    start_night(store, "r1")
    view = seen(store, resume_errored=True)
    assert view["to_run"] == 1
    assert any("r1" in refusal for refusal in view["refusals"])


def test_a_living_driver_is_such_a_reason():
    view = seen(store_with(DONE, HUNG), stale_after=3600)
    assert len(view["refusals"]) == 1


@pytest.mark.parametrize("objects", [{}, {STATE_NAME: b"[" * 1000}, {"tuner.pkl": b"x"}])
def test_an_experiment_without_a_readable_state_is_an_error_of_this_package(objects):
    store = MemoryStore()
    for key, body in objects.items():
        store.put(key, body)
    with pytest.raises(TuneRestoreError):
        seen(store)
    if not objects:
        with pytest.raises(StateUnreadableError, match="neither"):
            seen(store)


def test_commands_of_a_plan_name_the_address_that_they_are_given():
    store = store_with(DONE, BAD)
    night(store, "r1")
    night(store, "r2")
    view = view_plan(
        store,
        PlanSwitches(resume_errored=True),
        named=lambda text: text.replace(store.uri, "s3://c@b/e"),
    )
    said = [*view["warnings"], *(trial["reason"] for trial in view["trials"])]
    commands = [text for text in said if "tune-restore release" in text]
    assert commands
    assert all("tune-restore release s3://c@b/e bad" in text for text in commands)


def test_a_restore_whose_dag_run_has_ended_refuses_nothing():
    store = store_with(DONE, BAD)
    start_night(store, "r1")
    dead = HolderStatus(has_ended=True, found="Its DAG run is failed")
    switches = PlanSwitches(stale_after=0, resume_errored=True)
    assert view_plan(store, switches)["refusals"]
    assert view_plan(store, switches, ask_holder=lambda _status: dead)["refusals"] == []


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 1e300])
def test_a_silence_out_of_bounds_is_refused(seconds):
    with pytest.raises(InvalidInputError, match="stale_after"):
        seen(store_with(DONE), stale_after=seconds)


def test_texts_of_the_experiment_are_shown_as_text():
    rows = [
        make_row(f"t{n}", status="ERROR", config={LONG: LONG if n else math.nan}) for n in (0, 1)
    ]
    view = seen(store_with(*rows), resume_errored=True)
    assert view["total"] == 2


def test_a_long_plan_is_cut_after_the_trials_that_run(monkeypatch):
    monkeypatch.setattr(views_plan, "MAX_TRIALS", 2)
    view = seen(store_with(DONE, make_row("done2"), HUNG))
    assert view["trials"][0]["trial_id"] == "hung"
    assert (len(view["trials"]), view["hidden"], view["total"]) == (2, 1, 3)


def test_a_ledger_of_garbage_is_a_warning():
    store = store_with(DONE, BAD)
    night(store, "r1")
    store.put(layout.LEDGER, b"{")
    assert any("counts as empty" in warning for warning in seen(store)["warnings"])
