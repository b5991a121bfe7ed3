"""The plan task over many experiments: which are leased, which are left alone, and the messages."""

import json
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.protocol import layout, lease, lease_watch
from airflow_tune_restore.protocol.check import CheckAnswer, Problem
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowFailException, AirflowSkipException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.records import night


def plan(experiments, **arguments) -> BuildRestorePlanOperator:
    arguments = {"resume_errored": True, "stale_after": 0, **arguments}
    return BuildRestorePlanOperator(task_id="plan", experiments=experiments, **arguments)


def is_leased(experiment) -> bool:
    return (experiment / ".tune_restore" / "lease").exists()


def test_one_small_item_for_each_trial_to_run(errored):
    context = make_context()
    items = plan(str(errored)).execute(context)
    (restore,) = context["ti"].pushed["outcomes"]
    assert items == [
        {
            "experiment": str(errored),
            "experiment_name": "exp",
            "restore_id": restore["restore_id"],
            "trial_id": trial_id,
            "action": "resume",
            "checkpoint": None,
            "iteration": 0,
            "label": f"exp {trial_id}",
        }
        for trial_id in ("a3", "a1")
    ]


def test_the_restore_can_be_found_by_the_commit(errored):
    context = make_context()
    plan(str(errored)).execute(context)
    (restore,) = context["ti"].pushed["outcomes"]
    assert restore["experiment"] == str(errored)
    written = read_plan(open_store(str(errored)), restore["restore_id"])
    assert len(written.to_run) == 2


def test_items_of_all_experiments_come_in_one_flat_list(errored, tmp_path):
    other = make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])
    context = make_context()
    items = plan([{"experiment": str(errored)}, {"experiment": str(other)}]).execute(context)
    assert [item["label"] for item in items] == ["exp a3", "exp a1", "other b1"]
    assert len({item["restore_id"] for item in items}) == 2


def test_a_retry_re_enters_its_own_restore(errored):
    first, second = make_context(), make_context(try_number=2)
    assert plan(str(errored)).execute(first) == plan(str(errored)).execute(second)
    assert first["ti"].pushed == second["ti"].pushed


def test_another_dag_run_is_told_who_holds_the_lease(errored):
    plan(str(errored)).execute(make_context(run_id="first"))
    reason = "another restore, DAG nightly, run first, is restoring it"
    with pytest.raises(AirflowSkipException, match=reason):
        plan(str(errored)).execute(make_context(run_id="second"))


def test_a_leased_experiment_does_not_stop_the_others(errored, tmp_path, capfd):
    plan(str(errored)).execute(make_context(run_id="first"))
    other = make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])
    items = plan([str(errored), str(other)]).execute(make_context(run_id="second"))
    assert [item["label"] for item in items] == ["other b1"]
    assert "exp is left alone: another restore, DAG nightly, run first" in capfd.readouterr().out


def test_an_unreadable_experiment_does_not_stop_the_others(errored, tmp_path):
    broken = make_experiment(tmp_path / "broken", [make_row("b1", status="ERROR")])
    next(broken.glob("experiment_state-*")).write_text("{")
    items = plan([str(broken), str(errored)]).execute(make_context())
    assert len(items) == 2


def test_what_is_not_there_is_named(tmp_path):
    context = make_context()
    plan(str(tmp_path / "nowhere")).execute(context)
    (outcome,) = context["ti"].pushed["outcomes"]
    assert outcome["outcome"] == "refused"
    assert "it has neither a tuner.pkl nor an experiment state" in outcome["reason"]


def test_a_running_experiment_is_never_touched(tmp_path):
    alive = make_experiment(tmp_path / "alive", [make_row("b1", status="RUNNING")])
    with pytest.raises(AirflowSkipException, match="it is running: 1 unfinished"):
        plan(str(alive), stale_after=3600).execute(make_context())
    assert not is_leased(alive)


def test_a_silent_experiment_is_interrupted_and_resumed(tmp_path):
    dead = make_experiment(tmp_path / "dead", [make_row("b1", status="RUNNING")])
    hours_ago = (datetime.now(UTC) - timedelta(hours=2)).timestamp()
    for path in [*dead.rglob("*"), dead]:
        os.utime(path, (hours_ago, hours_ago))
    assert len(plan(str(dead), stale_after=3600).execute(make_context())) == 1


def test_a_finished_experiment_is_skipped_in_words(tmp_path):
    done = make_experiment(tmp_path / "done", [make_row("b1"), make_row("b2")])
    with pytest.raises(AirflowSkipException, match="all 2 trials ended"):
        plan(str(done)).execute(make_context())
    assert not is_leased(done)


def test_errors_nobody_asked_to_resume_are_skipped_in_words(errored):
    with pytest.raises(AirflowSkipException, match=r"trials? stays? as"):
        plan(str(errored), resume_errored=False).execute(make_context())


def test_one_run_of_all_gets_a_task_a_trial_and_seeds_without_rows(errored):
    context = make_context()
    items = plan(str(errored), strategy="whole_experiment").execute(context)
    (restore,) = context["ti"].pushed["outcomes"]
    kept = json.loads((errored / layout.plan_key(restore["restore_id"])).read_text())
    assert (kept["strategy"], kept["continues_search"]) == ("whole_experiment", False)
    assert [item["trial_id"] for item in items] == [
        trial["trial_id"] for trial in kept["trials"] if trial["action"] == "resume"
    ]
    for item in items:
        seed = (errored / layout.seed_key(restore["restore_id"], item["trial_id"])).read_bytes()
        assert json.loads(seed)["trial_data"] == []


def test_samples_that_the_run_of_all_will_draw_get_a_task_of_their_own(tmp_path):
    dead = make_experiment(tmp_path / "dead", [make_row("b1", status="PENDING")], total_samples=3)
    items = plan(str(dead), strategy="whole_experiment").execute(make_context())
    assert [item["trial_id"] for item in items] == ["b1", layout.WHOLE_EXPERIMENT]
    assert items[1]["label"] == "dead new samples"


def test_experiments_with_nothing_but_samples_left_are_handed_on_unleased(tmp_path):
    dead = make_experiment(
        tmp_path / "dead", [make_row("b1", status="TERMINATED")], total_samples=3
    )
    context = make_context()
    assert plan(str(dead)).execute(context) == []
    (outcome,) = context["ti"].pushed["outcomes"]
    assert (outcome["experiment"], outcome["outcome"]) == (str(dead), "continue_search")
    assert not (dead / layout.ROOT).exists()


def test_one_that_never_started_is_handed_on_if_there_is_a_param_space(tmp_path):
    unborn = make_experiment(tmp_path / "unborn", [])
    context = make_context()
    plan(str(unborn)).execute(context)
    (outcome,) = context["ti"].pushed["outcomes"]
    assert outcome["outcome"] == "refused"
    assert "param_space" in outcome["reason"]
    plan(str(unborn), param_space="a:b").execute(context)
    (outcome,) = context["ti"].pushed["outcomes"]
    assert outcome["outcome"] == "continue_search"


def test_no_experiments_are_skipped_in_words():
    with pytest.raises(AirflowSkipException, match="No experiment was given"):
        plan([]).execute(make_context())


def test_more_trials_than_airflow_maps_are_restored_in_parts(errored, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "1")
    context = make_context()
    (item,) = plan(str(errored)).execute(context)
    (outcome,) = context["ti"].pushed["outcomes"]
    assert (outcome["outcome"], outcome["waiting"]) == ("restored", 1)
    assert item["label"] == "exp a3"
    stored = read_plan(open_store(str(errored)), outcome["restore_id"])
    assert [trial.trial_id for trial in stored.to_run] == ["a3"] == list(stored.choices.trials)


def test_an_experiment_that_waits_is_not_leased_and_is_named(errored, tmp_path, capfd):
    later = make_experiment(tmp_path / "z", [make_row(f"b{n}", status="ERROR") for n in range(3)])
    for path in errored.rglob("*"):
        os.utime(path, (1000.0, 1000.0))
    context = make_context()
    items = plan([str(later), str(errored)], max_trials="2").execute(context)
    assert [item["label"] for item in items] == ["exp a3", "exp a1"]
    waits, _ = context["ti"].pushed["outcomes"]
    assert (waits["outcome"], waits["waiting"]) == ("waiting", 3)
    reason = "waits for the next DAG run: 3 trials to run, and this one takes 2 (max_trials)"
    assert waits["reason"] == reason
    assert f"{later} {reason}" in capfd.readouterr().out
    assert not (later / ".tune_restore").exists()


@pytest.mark.parametrize("max_trials", [0, "x", 1.5])
def test_a_number_of_trials_that_is_none_is_refused_when_the_dag_is_parsed(max_trials):
    with pytest.raises(InvalidInputError, match="max_trials="):
        plan("/x", max_trials=max_trials)


def test_a_coupled_experiment_has_one_task_for_the_trials_without_room(errored):
    items = plan(str(errored), strategy="whole_experiment", max_trials=1).execute(make_context())
    (item,) = items
    assert (item["trial_id"], item["action"]) == (WHOLE_EXPERIMENT, "run")
    assert item["label"] == "exp 2 other trials"


def test_a_trainable_that_does_not_fit_is_refused_before_anything_is_leased(errored, launcher):
    words = "It was made with another trainable."
    launcher.answer = CheckAnswer(experiment="", problem=Problem.MISFIT, message=words)
    context = make_context()
    assert plan(str(errored), trainable="no:such").execute(context) == []
    (outcome,) = context["ti"].pushed["outcomes"]
    assert (outcome["outcome"], outcome["reason"]) == ("misfit", words)
    assert not (errored / ".tune_restore").exists()


@pytest.mark.parametrize(
    ("launcher", "user", "sentence"),
    [
        ("local", "no such user", "this worker has no such user"),
        ("local", "root", "is root"),
        ("ray", "nobody", "Leave it out"),
        ("kubernetes", "nobody", "Leave it out"),
    ],
)
def test_a_runner_user_that_cannot_be_is_refused_before_anything_is_leased(
    errored, launcher, user, sentence
):
    with pytest.raises(AirflowFailException, match=sentence):
        plan(str(errored), launcher=launcher, runner_user=user).execute(make_context())
    assert not (errored / ".tune_restore").exists()


@pytest.mark.parametrize("launcher", ["local", "ray", "kubernetes"])
@pytest.mark.parametrize("rendered", ["", " ", "None", None])
def test_a_runner_user_that_renders_to_nothing_is_refused_before_anything_is_leased(
    errored, launcher, rendered
):
    operator = plan(str(errored), launcher=launcher, runner_user="{{ var.value.get('user') }}")
    operator.runner_user = rendered
    with pytest.raises(AirflowFailException, match="is not the name of a user"):
        operator.execute(make_context())
    assert not (errored / ".tune_restore").exists()


def test_one_process_checks_the_trainable_against_all_experiments(errored, launcher, tmp_path):
    rows = [make_row("b1", status="ERROR", trainable_name="another")]
    other = make_experiment(tmp_path / "other", rows)
    plan([str(errored), str(other)], trainable="a:b", imports=["c"]).execute(make_context())
    (question,) = launcher.checked
    assert (question.trainable, question.imports) == ("a:b", ["c"])
    assert [
        (asked.experiment, asked.trainable_name, asked.state) for asked in question.experiments
    ] == [(str(errored), "train", STATE_NAME), (str(other), "another", STATE_NAME)]


def test_a_check_without_time_is_refused(errored, launcher):
    operator = plan(str(errored), trainable="a:b", check_timeout="{{ params.limit }}")
    operator.check_timeout = "0"  # as Airflow renders it
    with pytest.raises(AirflowFailException, match="check_timeout='0' leaves no time"):
        operator.execute(make_context())


def test_a_tuner_pkl_of_another_run_is_told_and_ignored_by_check_and_plan(
    tmp_path, launcher, capfd
):
    rows = [make_row("a1", status="ERROR", trainable_name="old")]
    reused = make_experiment(tmp_path / "reused", rows)
    context = make_context()
    plan(str(reused), trainable="a:old").execute(context)
    (question,) = launcher.checked
    (asked,) = question.experiments
    assert (asked.trainable_name, asked.ignore_tuner) == ("old", True)
    (restore,) = context["ti"].pushed["outcomes"]
    assert read_plan(open_store(str(reused)), restore["restore_id"]).ignore_tuner
    assert (
        "tuner.pkl belongs to another run: it names the trainable 'train'" in capfd.readouterr().out
    )


def test_tuner_pkl_is_ignored_by_choice(errored):
    for choice, number in (("False", 0), ("True", 1)):
        context = make_context(run_id=f"run{number}")
        plan(str(errored), ignore_tuner=choice).execute(context)
        (restore,) = context["ti"].pushed["outcomes"]
        store = open_store(str(errored))
        assert read_plan(store, restore["restore_id"]).ignore_tuner is (choice == "True")
        lease.release(store, lease.check_held(store, restore["restore_id"]))


def test_unfinished_trials_nobody_wants_need_a_commit_but_no_task(tmp_path):
    dead = make_experiment(tmp_path / "dead", [make_row("b1", status="PENDING")])
    context = make_context()
    assert plan(str(dead), resume_unfinished="False").execute(context) == []
    assert len(context["ti"].pushed["outcomes"]) == 1


def test_a_restart_is_planned_under_a_flag(errored):
    items = plan(str(errored), resume_errored=False, restart_errored="True").execute(make_context())
    assert {item["action"] for item in items} == {"restart"}


def test_the_per_status_form_replaces_the_flags(errored):
    choices = {"finished": "restart", "errored": "skip"}
    items = plan(str(errored), resume_config=choices).execute(make_context())
    assert [(item["trial_id"], item["action"]) for item in items] == [("a2", "restart")]


def test_a_restore_that_died_is_committed_before_the_next_is_planned(errored, capfd, monkeypatch):
    first = make_context(run_id="first")
    plan(str(errored), lease_ttl=60).execute(first)
    monkeypatch.setattr(lease_watch, "MAX_WATCH_SECONDS", 0.0)
    for key in (layout.lease_claim_key(1), layout.lease_heartbeat_key(1)):
        os.utime(errored / key, (time.time() - 61,) * 2)  # noqa: TID251
    items = plan(str(errored)).execute(make_context(run_id="second"))
    assert len(items) == 2
    assert "A restore that died was committed first" in capfd.readouterr().out
    held = lease.check_held(open_store(str(errored)), items[0]["restore_id"])
    assert held.holder == "DAG nightly, run second"


def test_a_run_after_the_commit_starts_a_new_restore(errored):
    from airflow_tune_restore.restore.commit import commit_restore

    items = plan(str(errored)).execute(make_context())
    commit_restore(open_store(str(errored)), items[0]["restore_id"])
    again = plan(str(errored)).execute(make_context())
    assert again[0]["restore_id"] == f"{items[0]['restore_id']}-2"


def test_a_name_from_storage_is_data_in_a_label(tmp_path):
    odd = make_experiment(tmp_path / "{{ 7*7 }}\x1b[31m", [make_row("t", status="ERROR")])
    (item,) = plan(str(odd)).execute(make_context())
    assert item["label"] == "{{ 7*7 }} t"
    assert json.loads(json.dumps(item)) == item


def test_a_mistake_in_a_flag_is_one_sentence(errored):
    operator = plan(str(errored), resume_errored="{{ params.resume }}")
    operator.resume_errored = "perhaps"  # as Airflow renders it
    with pytest.raises(AirflowFailException, match="neither true nor false"):
        operator.execute(make_context())


def test_trials_that_failed_too_often_are_left_alone_and_named(errored, capfd):
    night(open_store(str(errored)), "r1", trial_id="a3", cause="actor_died", place="")
    arguments = {"experiments": str(errored), "resume_errored": True, "stale_after": 0}
    items = BuildRestorePlanOperator(task_id="plan", max_attempts="1", **arguments).execute(
        make_context()
    )
    assert [item["trial_id"] for item in items] == ["a1"]
    assert "a3: ERROR, quarantined: 1 failed attempt, of at most 1" in capfd.readouterr().out


def test_nothing_but_quarantined_trials_is_nothing_to_restore(errored):
    for trial_id in ("a1", "a3"):
        night(open_store(str(errored)), f"r-{trial_id}", trial_id=trial_id)
        night(open_store(str(errored)), f"s-{trial_id}", trial_id=trial_id)
    operator = BuildRestorePlanOperator(
        task_id="plan", experiments=str(errored), resume_errored=True, stale_after=0
    )
    with pytest.raises(AirflowSkipException, match="2 quarantined"):
        operator.execute(make_context())


@pytest.mark.parametrize(
    ("name", "rendered"), [("max_attempts", "0"), ("max_attempts", "two"), ("max_memory", "-1")]
)
def test_limits_that_are_none_are_refused(errored, name, rendered):
    operator = plan(str(errored), **{name: "{{ params.limit }}"})
    setattr(operator, name, rendered)
    with pytest.raises(AirflowFailException, match=name):
        operator.execute(make_context())


def test_the_log_shows_differing_parameters_and_the_argument_that_would_run_the_rest(
    tmp_path, capfd
):
    hung = make_row("hung", status="RUNNING", config={"lr": 0.5, "epochs": 3})
    bad = make_row("bad", status="ERROR", config={"lr": 0.25, "epochs": 3})
    experiment = make_experiment(tmp_path / "exp", [hung, bad])
    plan(str(experiment), resume_errored=False).execute(make_context())
    log = capfd.readouterr().out
    assert "1 of 2 trials to run" in log
    assert "resume hung (lr=0.5): RUNNING" in log
    assert (
        "1 ERROR trial stays as it is: resume_errored=True or restart_errored=True would run it"
    ) in log
