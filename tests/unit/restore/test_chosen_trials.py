"""Only the trials that the user names are restored; all others stay exactly as they are recorded."""

from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.read import read_base, read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.undo import undo_commit
from airflow_tune_restore.storage.local import LocalStore
from tests.support import FAILED
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import leave_attempt, night, plan_night, start_night

UNFINISHED = ("PENDING", "RUNNING", "PAUSED")
IDS = ["bad", "worse", "good", *(status.lower() for status in UNFINISHED)]
ROWS = [
    make_row("bad", status="ERROR", error=True),
    make_row("worse", status="ERROR", error=True),
    make_row("good", last_result={"training_iteration": 4, "done": True}),
    *(make_row(status.lower(), status=status) for status in UNFINISHED),
]
NOTHING = ResumeFlags()


@pytest.fixture
def store(tmp_path):
    """Eight samples, of which two were never drawn."""
    return LocalStore(make_experiment(tmp_path / "sweep", ROWS, total_samples=8, live=IDS[3:]))


def actions(plan) -> dict[str, str]:
    return {trial.trial_id: trial.action for trial in plan.trials}


def prepare(store, *trials, **flags):
    choices = PlanChoices(trials=trials, flags=ResumeFlags.from_flags(**flags))
    return prepare_restore(store, "r1", PrepareOptions(choices=choices, stale_after=timedelta(0)))


def test_all_trials_but_the_chosen_ones_are_kept_whatever_their_status(store):
    plan = plan_night(store, trials=("bad", "running"))
    kept = [trial for trial in plan.trials if trial.action is TrialAction.KEEP]
    assert [trial.trial_id for trial in plan.to_run] == ["bad", "running"]
    assert {trial.trial_id for trial in kept} == {"worse", "good", "pending", "paused"}
    for trial in kept:
        assert trial.reason == f"{trial.status}, not among the chosen trials, stays as it is"
    assert not plan.continues_search
    assert not plan.warnings


def test_the_flags_still_decide_about_a_chosen_trial(store):
    restarted = plan_night(
        store, trials=("worse",), flags=ResumeFlags.from_flags(restart_errored=True)
    )
    assert [trial.action for trial in restarted.to_run] == [TrialAction.RESTART]
    ended = plan_night(
        store, trials=("paused",), flags=ResumeFlags.from_flags(resume_unfinished=False)
    )
    changed = {key: action for key, action in actions(ended).items() if action != "keep"}
    assert changed == {"paused": TrialAction.TERMINATE}


@pytest.mark.parametrize(
    ("trial_id", "flag"),
    [
        ("bad", "1 ERROR trial stays as it is: resume_errored=True or restart_errored=True would"),
        ("good", "1 finished trial stays as it is: --finished resume (resume_config={'finished': "),
    ],
)
def test_without_a_flag_for_it_a_chosen_trial_stays_and_the_flag_is_named(store, trial_id, flag):
    assert not plan_night(store, trials=(trial_id,), flags=NOTHING).changes_trials
    nothing = prepare(store, trial_id)
    assert isinstance(nothing, str)
    assert flag in nothing


def test_a_trial_that_fail_fast_ended_has_a_flag_of_its_own(tmp_path):
    rows = [
        make_row("bad", status="ERROR", error=True, last_result={"training_iteration": 1}),
        make_row("cut", last_result={"training_iteration": 1}),
    ]
    state = {"total_samples": 2, "live": ["cut"], "_fail_fast": True, "_has_errored": True}
    store = LocalStore(make_experiment(tmp_path / "sweep", rows, **state))
    nothing = prepare(store, "cut")
    assert "1 trial that fail_fast cut short stays as it is: resume_cut_short=True would" in nothing
    assert "ERROR trial" not in nothing


def test_an_unknown_id_is_refused_with_those_like_it(store):
    with pytest.raises(InvalidInputError) as refused:
        plan_night(store, trials=("bad", "runing"))
    assert f"{store.uri} has no trial 'runing'. Ids like it: running." in str(refused.value)
    with pytest.raises(
        InvalidInputError, match=r"no trial 'x'. It has 6 trials. `tune-restore plan "
    ):
        plan_night(store, trials=("x",))


def test_an_empty_id_is_refused():
    with pytest.raises(InvalidInputError, match="--trial"):
        PlanChoices(trials=("a", ""))


def test_coupled_trials_are_refused_unless_the_strategy_is_forced():
    store = LocalStore(FAILED / "asha")
    trial_id = read_base(store).trials[0].trial_id
    with pytest.raises(InvalidInputError, match=r"coupled by .*--strategy per_trial"):
        plan_night(store, trials=(trial_id,))


def test_a_forced_run_of_all_trials_and_chosen_trials_exclude_each_other(store):
    with pytest.raises(InvalidInputError, match="strategy='whole_experiment' is set"):
        plan_night(store, trials=("bad",), strategy="whole_experiment")


def test_forced_coupled_trials_are_restored_alone():
    store = LocalStore(FAILED / "asha")
    errored = [t.trial_id for t in read_base(store).trials if t.status == "ERROR"]
    plan = plan_night(store, trials=tuple(errored[:1]), strategy="per_trial")
    assert [trial.trial_id for trial in plan.to_run] == errored[:1]
    assert not plan.continues_search


def test_a_chosen_trial_in_quarantine_stays_there_and_the_release_is_named(store):
    for restore_id in ("r1", "r2"):
        night(store, restore_id, options={"trials": ("bad",)})
    plan = plan_night(store, trials=("bad",))
    assert not plan.to_run
    assert f"`tune-restore release {store.uri} bad`" in plan.trial("bad").reason
    others = plan_night(store, trials=("worse",))
    assert not any("quarantine" in warning for warning in others.warnings)


def test_a_commit_leaves_every_other_row_byte_for_byte_and_the_search_alone(store):
    before = read_experiment(store).state.rows
    plan = start_night(store, "r1", trials=("bad",))
    leave_attempt(store, plan, "bad")
    summary = commit_restore(store, "r1")
    after = read_experiment(store)
    assert [trial.status for trial in after.trials] == [
        "TERMINATED",
        "ERROR",
        "TERMINATED",
        *UNFINISHED,
    ]
    assert {key: row for key, row in after.state.rows.items() if key != "bad"} == {
        key: row for key, row in before.items() if key != "bad"
    }
    assert after.samples_left == summary.samples_left == 2
    assert summary.is_done
    assert "1 resumed trial finished; 5 trials not chosen, left as recorded" in summary.headline()


def test_the_experiment_stays_restorable_and_the_commit_can_be_undone(store):
    plan = start_night(store, "r1", trials=("running",))
    leave_attempt(store, plan, "running")
    commit_restore(store, "r1")
    (report,) = scan(store)  # nothing was written since but by the restore, so no silence is needed
    assert report.health is Health.INTERRUPTED
    assert actions(plan_night(store)) == {
        "bad": "resume", "worse": "resume", "good": "keep",
        "pending": "resume", "running": "keep", "paused": "resume",
    }  # fmt: skip
    undo_commit(store, holder="test")
    assert read_base(store).trials[4].status == "RUNNING"
    assert actions(plan_night(store))["running"] == "resume"


def test_one_that_fails_again_is_not_done(store):
    assert not night(store, "r1", options={"trials": ("bad",)}).is_done


def test_the_search_is_not_continued_if_no_chosen_trial_is_to_run(tmp_path):
    rows = [make_row("good", last_result={"training_iteration": 4, "done": True})]
    store = LocalStore(make_experiment(tmp_path / "sweep", rows, total_samples=2))
    assert isinstance(prepare(store, "good"), str)
    assert not isinstance(prepare(store), str)


def test_an_experiment_that_never_started_has_no_trial_to_choose(store):
    for state in store.list_dir():
        if state.name.startswith("experiment_state-"):
            store.delete(state.name)
    options = PrepareOptions(
        choices=PlanChoices(trials=("bad",)), stale_after=timedelta(0), can_start=True
    )
    with pytest.raises(InvalidInputError, match=r"leave out trials \(--trial\)"):
        prepare_restore(store, "r1", options)
