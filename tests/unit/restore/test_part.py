"""A plan is fitted into the tasks of one DAG run: in parts, or with one task for the rest."""

import json

import pytest

from airflow_tune_restore.exceptions import UnknownTrialError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.planned import read_planned
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.part import limit_tasks
from airflow_tune_restore.restore.plan import RestorePlan, read_plan
from airflow_tune_restore.restore.prepare import plan_again, plan_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_plan
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, plan_night

RESUME = ResumeFlags.from_flags(resume_errored=True)


def make(failed=12, *, more=(), **runner):
    """Return a store with trials that failed: `t11` has the newest result, so Ray takes it first."""
    store = MemoryStore()
    rows = [
        make_row(f"t{number:02}", status="ERROR", last_result_time=float(number))
        for number in range(failed)
    ]
    store.put(STATE_NAME, make_state([*rows, *more], **runner))
    return store


def prepare(store, restore_id, most=5, **choices):
    choices = PlanChoices(**{"flags": RESUME, **choices})
    return plan_restore(store, restore_id, PrepareOptions(choices=choices, most_tasks=most))


def ids(trials):
    return [trial.trial_id for trial in trials]


def restore(store, restore_id, most=5, *, failing=()):
    """Restore a part and commit it; return the ids of its trials, and the summary."""
    plan = start_plan(prepare(store, restore_id, most), holder="test")
    for number, trial in enumerate(plan.to_run):
        result = "failed" if trial.trial_id in failing else "finished"
        # another iteration each time, so that the failures are not the same
        leave_attempt(
            store, plan, trial.trial_id, result=result, iteration=number + len(restore_id)
        )
    return ids(plan.to_run), commit_restore(store, restore_id)


def rows_of(store):
    newest = max(entry.name for entry in store.list_dir() if layout.is_state_file(entry.name))
    state = json.loads(store.get(newest, max_bytes=10**9))
    return {json.loads(row[0])["trial_id"]: row for row in state["trial_data"]}


def test_a_plan_that_fits_is_the_same_plan():
    plan = plan_night(make())
    assert limit_tasks(plan, 12) is plan
    assert limit_tasks(plan, None) is plan


def test_a_part_takes_the_first_trials_in_rays_order_and_keeps_the_others():
    plan = prepare(make(), "r1").plan
    assert ids(plan.to_run) == ["t11", "t10", "t09", "t08", "t07"] == list(plan.choices.trials)
    assert plan.waiting == 7
    kept = [trial for trial in plan.trials if trial.action is TrialAction.KEEP]
    assert {trial.reason for trial in kept} == {
        "ERROR, waits for a later restore: this one takes 5 of 12 trials"
    }
    assert RestorePlan.from_json(plan.to_json()) == plan


def test_a_part_leaves_trials_that_the_flags_end_as_they_are():
    store = make(3, more=[make_row("run", status="RUNNING"), make_row("ok")])
    flags = ResumeFlags.from_flags(resume_errored=True, resume_unfinished=False)
    choices = PlanChoices(flags=flags)
    whole, part = (
        plan_restore(store, "r", PrepareOptions(choices=choices, most_tasks=most)).plan
        for most in (None, 2)
    )
    assert whole.trial("run").action is TrialAction.TERMINATE
    assert part.trial("run").action is TrialAction.KEEP
    assert part.trial("run").reason.startswith("RUNNING, is left to a later restore")
    assert part.trial("ok") == whole.trial("ok")
    assert part.waiting == 1


def test_twelve_trials_are_restored_in_parts_of_five_and_the_others_stay_byte_for_byte():
    store = make()
    sizes, seen = [], set()
    for restore_id in ("r1", "r2", "r3"):
        before = rows_of(store)
        ran, summary = restore(store, restore_id)
        after = rows_of(store)
        assert {key: row for key, row in after.items() if key not in ran} == {
            key: row for key, row in before.items() if key not in ran
        }
        assert not seen & set(ran) & {c.trial_id for c in summary.failed}
        sizes.append(len([trial for trial in ran if trial not in seen]))
        seen |= set(ran)
        assert summary.waiting == 12 - len(seen)
        waits = "; 7 trials wait for a later restore" if len(seen) == 5 else ""
        assert waits in summary.headline()
        assert "not chosen" not in summary.headline()
    assert sizes == [5, 5, 2]
    assert not prepare(store, "r4").plan.to_run


def test_trials_that_fail_again_do_not_keep_the_others_out():
    """Ray would take them first: they have the newest results."""
    store = make()
    always = ("t11", "t10", "t09", "t08", "t07")
    restore(store, "r1", failing=always)
    second, _ = restore(store, "r22", failing=always)
    third, _ = restore(store, "r333", failing=always)
    assert second == ["t06", "t05", "t04", "t03", "t02"]
    assert set(third) >= {"t01", "t00"}
    assert len(third) == 5


def test_a_part_of_chosen_trials_takes_chosen_trials_only():
    plan = prepare(make(), "r1", 1, trials=("t01", "t02")).plan
    assert ids(plan.to_run) == ["t02"] == list(plan.choices.trials)
    assert plan.waiting == 1
    assert plan.trial("t01").reason.startswith("ERROR, waits for")
    assert "not among the chosen trials" in plan.trial("t05").reason


def test_chosen_trials_that_start_over_are_named_again_by_the_next_part():
    """With `repeat`, the next DAG run has the same `trials`, and its experiment other ids."""
    store = make()
    flags = ResumeFlags.from_flags(restart_errored=True)
    chosen = {"trials": ("t00", "t01", "t02"), "flags": flags}
    parts = []
    for restore_id in ("r1", "r2"):
        plan = start_plan(prepare(store, restore_id, 2, **chosen), holder="test")
        parts.append(ids(plan.to_run))
        for trial in plan.to_run:
            leave_attempt(store, plan, trial.trial_id, result="failed")
        commit_restore(store, restore_id)
    assert parts == [["t02", "t01"], ["t00"]]
    last = prepare(store, "r3", 2, **chosen).plan
    assert not last.changes_trials
    assert "all chosen trials have started over under new ids" in last.warnings
    with pytest.raises(UnknownTrialError, match="'t99'"):
        prepare(store, "r3", 2, **{**chosen, "trials": ("t00", "t99")})


def test_a_plan_that_is_made_again_is_the_same_part():
    store = make()
    prepared = prepare(store, "r1")
    assert plan_again(prepared).plan == prepared.plan


def test_a_whole_experiment_has_one_task_for_the_trials_behind_the_first():
    store = make()
    prepared = prepare(store, "r1", 5, strategy="whole_experiment")
    plan = start_plan(prepared, holder="test")
    assert len(plan.to_run) == 12
    assert ids(plan.with_tasks) == ["t11", "t10", "t09", "t08"]
    assert len(plan.rest) == 8
    assert (plan.own_tasks, plan.task_count, plan.waiting) == (4, 5, 0)
    assert read_plan(store, "r1").rest == plan.rest
    assert [t.trial_id for t in read_planned(store, "r1").rest] == ids(plan.rest)
    seeds = {e.name for e in store.walk(layout.restore_dir("r1")) if "seed" in e.name}
    assert not [name for name in seeds if "t00" in name]


@pytest.mark.parametrize(("most", "own"), [(1, 0), (2, 1), (12, 11), (13, None)])
def test_the_samples_to_draw_share_the_task_of_the_rest(most, own):
    """Twelve trials, and one task for the samples, are thirteen tasks."""
    plan = prepare(make(), "r1", most, strategy="whole_experiment").plan
    assert plan.continues_search
    assert (plan.own_tasks, plan.task_count) == (own, most)


def test_trials_that_finished_before_come_last_and_do_not_wait():
    """Each restore would choose them again: those with the newest results are those that ran just now."""
    finished = [make_row(f"f{number}", last_result_time=99.0 + number) for number in range(4)]
    store = make(3, more=finished)
    flags = ResumeFlags.parse({"errored": "resume", "finished": "resume"})
    choices = PlanChoices(flags=flags)
    first, second = (
        plan_restore(store, "r", PrepareOptions(choices=choices, most_tasks=most)).plan
        for most in (2, 5)
    )
    assert (ids(first.to_run), first.waiting) == (["t02", "t01"], 1)
    assert (set(ids(second.to_run)), second.waiting) == ({"t00", "t01", "t02", "f3", "f2"}, 0)


def test_trials_that_fail_fast_cut_short_wait_like_others():
    rows = [
        make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 1}),
        *(make_row(f"cut{n}", last_result={"training_iteration": 1}) for n in range(3)),
    ]
    live = [f"cut{n}" for n in range(3)]
    store = MemoryStore()
    state = make_state(rows, total_samples=4, live=live, _fail_fast=True, _has_errored=True)
    store.put(STATE_NAME, state)
    choices = PlanChoices(flags=ResumeFlags.from_flags(resume_cut_short=True))
    plan = plan_restore(store, "r", PrepareOptions(choices=choices, most_tasks=1)).plan
    assert (len(plan.to_run), plan.waiting) == (1, 2)
