"""The plan task behind a yes: it starts what was shown, or nothing."""

import json
import os
import time

import pytest

from airflow_tune_restore.operators.approval import ApprovedXCom
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.preview_restore import PreviewRestoreOperator
from airflow_tune_restore.protocol import layout, lease_watch
from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.airflow.states import FAILED, SKIPPED, SUCCESS, run
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state
from tests.support.records import leave_attempt, night, start_night

FLAGS = {"resume_errored": True, "stale_after": 0, "launcher": "ray"}


@pytest.fixture
def two(errored, tmp_path):
    """Two experiments to restore."""
    return [errored, make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])]


def show(experiments, context=None, **flags):
    """Return what plan and commit get from a preview."""
    operator = PreviewRestoreOperator(
        task_id="preview", experiments=[str(e) for e in experiments], **{**FLAGS, **flags}
    )
    _, returned, pushed = run(operator, context)
    return {"approved": returned, "previewed": pushed["outcomes"]}


def plan(experiments, shown, **flags):
    return BuildRestorePlanOperator(
        task_id="plan", experiments=[str(e) for e in experiments], **{**FLAGS, **shown, **flags}
    )


def change(experiment, trial_id="a1", status="ERROR"):
    """Let its driver write another state under the same name."""
    (experiment / STATE_NAME).write_bytes(make_state([make_row(trial_id, status=status)]))


def is_leased(experiment) -> bool:
    return (experiment / ".tune_restore" / "lease").exists()


def test_what_was_approved_is_started(two):
    _, items, pushed = run(plan(two, show(two)))
    assert len(items) == 3
    assert {each["outcome"] for each in pushed["outcomes"]} == {"restored"}


@pytest.mark.parametrize("stale_after", [0, 3600], ids=["looks dead", "looks alive"])
def test_a_changed_state_is_named_and_nothing_is_started(two, stale_after):
    first, second = two
    shown = show(two)
    change(second, "b1", "RUNNING")
    context = make_context()
    operator = plan(two, shown, stale_after=stale_after, resume_unfinished=True)
    with pytest.raises(AirflowFailException) as caught:
        operator.execute(context)
    message = str(caught.value)
    assert "Not what was approved any more: 1 experiment. Nothing was started" in message
    assert f"{second}: {STATE_NAME} (SHA-256 {shown['approved'][1]['sha256'][:16]}…) was" in message
    assert f"approved, and its newest state is {STATE_NAME} (SHA-256 " in message
    assert "start a new DAG run: airflow dags trigger nightly" in message
    assert str(first) not in message
    assert not any(map(is_leased, two))
    held, changed = context["ti"].pushed["outcomes"]
    assert (held["outcome"], changed["outcome"]) == ("refused", "refused")
    assert "held back" in held["reason"]
    assert "was approved" in changed["reason"]


def test_all_that_have_changed_are_named(two):
    shown = show(two)
    for each in two:
        change(each)
    with pytest.raises(AirflowFailException, match=f"2 experiments.*{two[0]}: .*; {two[1]}: "):
        plan(two, shown).execute(make_context())


def test_a_state_that_went_away_is_named(two):
    shown = show(two)
    (two[1] / STATE_NAME).write_text("{")
    with pytest.raises(AirflowFailException, match="was approved, and no state can be read now"):
        plan(two, shown).execute(make_context())
    assert not is_leased(two[0])


def test_other_trials_of_the_same_state_need_a_new_yes(tmp_path):
    rows = [make_row("bad", status="ERROR", error=True), make_row("good", status="ERROR")]
    made = make_experiment(tmp_path / "exp", rows)
    store = open_store(str(made))
    for restore_id in ("r1", "r2"):
        night(store, restore_id)
    shown = show([made])
    release_trials(store, ["bad"], holder="me")
    with pytest.raises(AirflowFailException, match="its state is the same, but other trials"):
        plan([made], shown).execute(make_context())


def test_a_retry_continues_its_own_restores(two):
    shown = show(two)
    first = plan(two, shown).execute(make_context())
    assert plan(two, shown).execute(make_context(try_number=2)) == first


def test_a_retry_that_is_refused_has_its_own_restores_committed(two):
    first, second = two
    shown = show(two)
    plan([first], shown).execute(make_context())  # the first try died behind the first experiment
    change(second)
    state, _, pushed = run(plan(two, shown), make_context(try_number=2))
    assert state == FAILED
    started, refused = pushed["outcomes"]
    assert (started["outcome"], refused["outcome"]) == ("restored", "refused")
    assert started["restore_id"]
    with pytest.raises(AirflowFailException) as caught:
        plan(two, shown).execute(make_context(try_number=2))
    assert "1 restore of an earlier try will be committed as it is" in str(caught.value)
    assert "Nothing was started" not in str(caught.value)


def test_an_option_that_has_changed_is_not_blamed_on_a_driver(errored):
    shown = show([errored])
    with pytest.raises(
        AirflowFailException, match="an option, a checkpoint or its quarantine has"
    ) as caught:
        plan([errored], shown, trials=["a1"]).execute(make_context())
    assert "Find out what wrote there" not in str(caught.value)


def test_after_its_commit_a_cleared_plan_needs_a_new_yes(errored):
    shown = show([errored])
    night(open_store(str(errored)), "the-night", trial_id="a1")
    with pytest.raises(AirflowFailException, match="was approved, and its newest state is"):
        plan([errored], shown).execute(make_context())


def test_what_a_restore_that_died_has_left_is_committed_first(errored, monkeypatch):
    store = open_store(str(errored))
    dead = start_night(store, "dead")
    leave_attempt(store, dead, "a1", result="finished")
    monkeypatch.setattr(lease_watch, "MAX_WATCH_SECONDS", 0.0)
    for key in (layout.lease_claim_key(1), layout.lease_heartbeat_key(1)):
        os.utime(errored / key, (time.time() - 200,) * 2)  # noqa: TID251
    context = make_context()
    shown = show([errored], context=context)
    assert "A restore that died may have left results" in context["ti"].pushed["body"]
    assert shown["approved"][0]["sha256"] == dead.base.sha256
    _, items, pushed = run(plan([errored], shown))
    assert [item["trial_id"] for item in items] == ["a3"]  # the other one has finished since
    assert pushed["outcomes"][0]["outcome"] == "restored"


def test_what_was_not_shown_is_left_alone(two, tmp_path):
    shown = show(two[:1])
    _, items, pushed = run(plan(two, shown))
    assert {item["experiment"] for item in items} == {str(two[0])}
    other = pushed["outcomes"][1]
    assert other["outcome"] == "left_alone"
    assert "the preview did not show it" in other["reason"]
    assert not is_leased(two[1])


def test_what_the_preview_has_found_of_the_others_counts(two, tmp_path):
    nowhere = tmp_path / "nowhere"
    given = [*two, nowhere]
    shown = show(given, max_trials=1)
    _, _, pushed = run(plan(given, shown, max_trials=1))
    outcomes = {each["experiment"]: each for each in pushed["outcomes"]}
    assert outcomes[str(nowhere)]["outcome"] == "refused"
    assert sum(each["waiting"] for each in outcomes.values()) == 2
    assert shown["previewed"] == [
        {**each, "restore_id": s["restore_id"]}
        for each, s in zip(pushed["outcomes"], shown["previewed"], strict=True)
    ]


@pytest.mark.parametrize("approved", [[], ""])
def test_without_a_preview_nothing_is_approved(errored, approved):
    shown = {"approved": approved, "previewed": []}
    with pytest.raises(AirflowSkipException, match="the preview did not show it"):
        plan([errored], shown).execute(make_context())


def test_an_experiment_that_never_started_can_be_approved(tmp_path):
    made = make_experiment(tmp_path / "exp", [make_row("a")])
    (made / STATE_NAME).unlink()
    shown = show([made], param_space="m:space")
    assert shown["approved"][0].get("sha256", "") == ""
    _, _, pushed = run(plan([made], shown, param_space="m:space"))
    assert pushed["outcomes"][0]["outcome"] == "continue_search"
    change(made)
    with pytest.raises(AirflowFailException, match="no state was approved, and its newest state"):
        plan([made], shown, param_space="m:space").execute(make_context())


def test_shortened_digests_are_compared_too(errored):
    shown = show([errored])
    short = [{**shown["approved"][0], "state": "", "work": ""}]
    short[0]["sha256"] = short[0]["sha256"][:16]
    run(plan([errored], {**shown, "approved": short}))
    assert is_leased(errored)
    change(errored)
    with pytest.raises(AirflowFailException, match=r"the state \(SHA-256 .*was approved"):
        plan([errored], {**shown, "approved": short}).execute(make_context(run_id="other"))


def test_what_is_not_an_item_of_a_preview_is_refused(errored):
    with pytest.raises(AirflowFailException, match="approved: 'x' is not an item"):
        plan([errored], {"approved": ["x"], "previewed": None}).execute(make_context())


def test_the_table_of_a_night_without_a_yes_names_what_was_shown(two, tmp_path):
    shown = show([*two, tmp_path / "nowhere"])
    commit = CommitRestoreOperator(task_id="commit", outcomes=None, previewed=shown["previewed"])
    state, returned, pushed = run(commit)
    assert (state, returned) == (SUCCESS, [])
    lines = {line["experiment"]: line["outcome"] for line in pushed["experiments"]}
    assert list(lines.values()) == ["refused", "not_started", "not_started"]
    assert pushed["totals"]["trials_run"] == 0
    assert not any(map(is_leased, two))


def test_without_a_preview_a_commit_is_skipped_as_ever():
    state, _, _ = run(CommitRestoreOperator(task_id="commit", outcomes=None))
    assert state == SKIPPED


def test_the_item_is_a_wire_format():
    item = ApprovedXCom.parse(
        {"experiment": "/e", "state": "s", "sha256": "ab", "work": "w", "later": 1}
    )
    assert json.loads(json.dumps(item.to_xcom())) == {
        "experiment": "/e",
        "state": "s",
        "sha256": "ab",
        "work": "w",
    }
