"""Operations by hand: release, undo and the list of quarantined trials, as operators."""

import json

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.operators import list_quarantine
from airflow_tune_restore.operators.list_quarantine import ListQuarantineOperator
from airflow_tune_restore.operators.release_trial import ReleaseTrialOperator
from airflow_tune_restore.operators.undo_commit import UndoCommitOperator
from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.lease_objects import newest_claim
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.version_compat import AirflowException, AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row
from tests.support.records import leave_attempt, start_night


@pytest.fixture
def store(errored):
    """Both errored trials have failed twice at the same place."""
    store = open_store(str(errored))
    for restore_id in ("r1", "r2"):
        plan = start_night(store, restore_id)
        for trial_id in ("a1", "a3"):
            leave_attempt(
                store, plan, trial_id, result="failed", ended_at="2026-11-28T03:04:05+00:00"
            )
        commit_restore(store, restore_id)
    return store


def quarantined(store) -> list[str]:
    return sorted(read_ledger(store)[0].quarantined(None))


def release(store, trials, **arguments):
    return ReleaseTrialOperator(
        task_id="release", experiment=store.uri, trials=trials, **arguments
    ).execute(make_context())


def undo(store, confirm="exp"):
    return UndoCommitOperator(task_id="undo", experiment=store.uri, confirm=confirm).execute(
        make_context(user="eva")
    )


def listed(prefix):
    return ListQuarantineOperator(task_id="list", prefix=str(prefix)).execute(make_context())


@pytest.mark.parametrize("trials", [["a1", "a3"], "a1, a3", "['a1', 'a3']"])
def test_trials_are_released(store, trials, capfd):
    released = release(store, trials)
    assert [(item["trial_id"], item["failures"]) for item in released] == [("a1", 2), ("a3", 2)]
    assert json.loads(json.dumps(released)) == released
    assert quarantined(store) == []
    out = capfd.readouterr().out
    assert f"Trial a1 runs again with the next restore of {store.uri} that resumes it" in out
    assert "its 2 failed attempts no longer count" in out


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ("", "names no trial"),
        ([], "names no trial"),
        ("['']", "holds an empty value"),
        (["a1", " "], "holds an empty value"),
        ("['a1 a3']", "has no trial 'a1 a3'"),
        (["a1", "a2"], "Trial a2 of .* is not quarantined"),
        (["a1", "a12"], "has no trial 'a12'. Ids like it: a2, a1"),
    ],
)
def test_of_several_trials_all_are_released_or_none(store, trials, words):
    with pytest.raises((AirflowFailException, InvalidInputError), match=words):
        release(store, trials)
    assert quarantined(store) == ["a1", "a3"]


def test_an_experiment_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(AirflowFailException, match="nowhere"):
        release(open_store(str(tmp_path / "nowhere")), "a1")


def test_during_a_restore_nothing_is_released_or_undone(store):
    lease.acquire(store, restore_id="other", holder="DAG nightly, run 7")
    for operate in (lambda: release(store, "a1"), lambda: undo(store)):
        with pytest.raises(AirflowException, match="DAG nightly, run 7") as held:
            operate()
        assert not isinstance(held.value, AirflowFailException)  # a retry may succeed


def test_a_commit_is_undone_and_the_lease_names_who_did_it(store, capfd):
    newest = read_base(store).state_file.name
    undone = undo(store)
    assert (undone["restore_id"], undone["state_file"]) == ("r2", newest)
    assert json.loads(json.dumps(undone)) == undone
    assert f"{newest} is deleted" in capfd.readouterr().out
    held = newest_claim(store, store.list_dir(layout.LEASE))
    assert held.holder == "DAG nightly, run run-1, triggered by eva"
    assert undo(store)["newest"] == STATE_NAME
    with pytest.raises(AirflowFailException, match=r"No commit can be undone.*Nothing was changed"):
        undo(store)


def test_undo_refuses_what_is_not_confirmed_and_what_something_newer_hides(store):
    newest = read_base(store).state_file.name
    for confirm in ("", "None", "sweeps/exp", "True"):
        with pytest.raises(AirflowFailException, match="set confirm to 'exp'"):
            undo(store, confirm)
    assert read_base(store).state_file.name == newest
    store.put("experiment_state-2027-01-01_00-00-00.json", store.get(STATE_NAME))
    with pytest.raises(AirflowFailException, match="Nothing was changed"):
        undo(store)


def test_the_list_names_since_when_why_and_how_to_release(store, tmp_path, capfd):
    make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])
    items = listed(tmp_path)
    assert [item["trial_id"] for item in items] == ["a3", "a1"]
    assert items[0] == {
        "experiment": store.uri,
        "trial_id": "a3",
        "parameters": {},
        "since": "2026-11-28T03:04:05+00:00",
        "reason": "ValueError at project/train.py:7 in step after iteration 3, 2 times",
        "cause": "trainable",
        "place": "project/train.py:7 in step",
        "message": "no",
        "failures": 2,
    }
    out = capfd.readouterr().out
    assert f"2 trials in quarantine in 2 experiments at or below {tmp_path}." in out
    assert "2026-11-28T03:04:05" in out
    assert (
        "DAG tune_restore_admin with "
        f'{{"operation": "release a trial", "experiment": "{store.uri}", "trials": ["a3", "a1"]}}'
    ) in out
    assert [item["trial_id"] for item in listed(store.uri)] == ["a3", "a1"]


def test_the_list_shows_the_parameters_in_which_trials_differ(tmp_path, capfd):
    rows = [
        make_row("a1", status="ERROR", config={"lr": 0.1, "seed": 7}),
        make_row("a2", status="TERMINATED", config={"lr": 0.3, "seed": 7}),
    ]
    opened = open_store(str(make_experiment(tmp_path / "exp", rows)))
    for restore_id in ("r1", "r2"):
        plan = start_night(opened, restore_id)
        leave_attempt(opened, plan, "a1", rows[0], result="failed")
        commit_restore(opened, restore_id)
    (item,) = listed(tmp_path)
    assert item["parameters"] == {"lr": "0.1"}
    assert " lr=0.1 " in capfd.readouterr().out


def test_a_list_without_any_is_a_sentence(tmp_path, capfd):
    assert listed(tmp_path) == []
    assert f"There is no Tune experiment at or below {tmp_path}." in capfd.readouterr().out
    make_experiment(tmp_path / "exp", [make_row("b1", status="ERROR")])
    assert listed(tmp_path) == []
    assert "0 trials in quarantine in 1 experiment" in capfd.readouterr().out


def test_a_ledger_that_cannot_be_read_is_named_and_the_others_are_listed(store, tmp_path, capfd):
    broken = make_experiment(tmp_path / "broken", [make_row("b1", status="ERROR")])
    (broken / layout.LEDGER).parent.mkdir()
    (broken / layout.LEDGER).write_text("{")
    (broken / layout.LEASE).mkdir()
    assert len(listed(tmp_path)) == 2
    out = capfd.readouterr().out
    assert f"{broken}: .tune_restore/ledger.json is unreadable" in out


def test_a_list_that_is_too_long_is_cut(store, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(list_quarantine, "MAX_TRIALS", 1)
    assert len(listed(tmp_path)) == 1
    assert "2 trials in quarantine; the list has the first 1." in capfd.readouterr().out


@pytest.mark.parametrize("prefix", ["", "s3://key:secret@bucket/x"])
def test_a_prefix_that_is_not_an_address_fails_the_task_at_once(prefix):
    operator = ListQuarantineOperator(task_id="list", prefix="{{ params.prefix }}")
    operator.prefix = prefix  # as rendered
    with pytest.raises(AirflowFailException):
        operator.execute(make_context())
    with pytest.raises(InvalidInputError):
        listed(prefix)
