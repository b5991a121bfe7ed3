"""A name that was used again: a tuner.pkl of another run, and older runs that the newest state hides."""

import pickle
from datetime import timedelta

import pytest

from airflow_tune_restore.experiments import index as index_module
from airflow_tune_restore.experiments import older_runs
from airflow_tune_restore.experiments.older_runs import describe_older_runs, older_states
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import KILLED, make_row, make_state
from tests.support.storage.counting import Clock, CountingStore

TUNER = (KILLED / "tuner.pkl").read_bytes()
"""It names the trainable `train`."""


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def named(day: int, commit: int | None = None) -> str:
    suffix = f"_r{commit:06d}" if commit else ""
    return f"experiment_state-2026-01-{day:02d}_00-00-00{suffix}.json"


def put_run(store, day, rows, *, commit=None, **runner):
    """Write the state of a driver session of that day, or of a commit to it."""
    body = make_state(rows, start_time=1000.0 * day + (commit or 0), **runner)
    store.put(named(day, commit), body)


def failed(trial_id="t1", **fields):
    return make_row(trial_id, status="ERROR", **fields)


# --- tuner.pkl ---


def test_rows_of_another_trainable_win_over_tuner_pkl(store):
    store.put("tuner.pkl", TUNER)
    put_run(store, 1, [failed(trainable_name="old")])
    experiment = read_experiment(store)
    assert (experiment.tuner, experiment.ignores_tuner) == (None, True)
    (warning,) = experiment.warnings
    assert "names the trainable 'train', the trials were run with 'old'" in warning
    assert "from the state alone, as with --ignore-tuner (ignore_tuner=True)" in warning


@pytest.mark.parametrize("names", [["train"], ["old", "train"], [""]])
def test_it_belongs_to_the_run_if_any_row_may_be_of_its_trainable(store, names):
    store.put("tuner.pkl", TUNER)
    put_run(store, 1, [failed(f"t{i}", trainable_name=name) for i, name in enumerate(names)])
    experiment = read_experiment(store)
    assert experiment.tuner is not None
    assert (experiment.ignores_tuner, experiment.warnings) == (False, ())


def test_it_is_ignored_by_choice_and_not_even_read(store):
    store.put("tuner.pkl", b"garbage")
    put_run(store, 1, [failed()])
    experiment = read_experiment(store, ignore_tuner=True)
    assert (experiment.tuner, experiment.ignores_tuner) == (None, True)
    (warning,) = experiment.warnings
    assert warning.startswith("tuner.pkl is ignored (ignore_tuner): the RunConfig")


@pytest.mark.parametrize(
    ("status", "tuner_later", "got"),
    [
        ("ERROR", 0, 1),  # some stores tell whole seconds only
        ("ERROR", 1, 1),
        ("RUNNING", 1, 1),  # which is dead
        ("ERROR", -1, 0),  # as every driver does it
        ("TERMINATED", 1, 0),
    ],
)
def test_a_scan_gets_tuner_pkl_only_of_what_would_be_restored_and_has_a_later_one(
    clock, status, tuner_later, got
):
    store = CountingStore.new(clock)
    row = make_row("t", status=status, trainable_name="old", last_result={"done": True})
    store.put(f"x/{named(1)}", make_state([row]))
    clock.now += timedelta(seconds=tuner_later)
    store.put("x/tuner.pkl", TUNER)
    clock.now += timedelta(days=9)
    (report,) = scan(store, use_index=False)
    assert store.got["tuner.pkl"] == got
    assert ("tuner.pkl belongs to another run" in report.reason) == bool(got)


def test_a_scan_gets_no_tuner_pkl_of_what_runs(clock):
    store = CountingStore.new(clock)
    store.put(f"x/{named(1)}", make_state([make_row("t", status="RUNNING", trainable_name="old")]))
    store.put("x/tuner.pkl", TUNER)
    scan(store, use_index=False)
    assert store.got == {named(1): 1}


def test_a_commit_after_it_makes_it_no_more_the_runs_own(clock):
    store = CountingStore.new(clock)
    for key in (named(1), "tuner.pkl", named(1, 1)):
        body = TUNER if key == "tuner.pkl" else make_state([failed(trainable_name="old")])
        store.put(f"x/{key}", body)
        clock.now += timedelta(days=1)
    (report,) = scan(store, use_index=False)
    assert "tuner.pkl belongs to another run" in report.reason


def test_the_index_remembers_it(clock, monkeypatch):
    monkeypatch.setattr(index_module, "MIN_ROWS", 1)
    store = CountingStore.new(clock)
    store.put(f"x/{named(1)}", make_state([failed(trainable_name="old")]))
    store.put("x/tuner.pkl", TUNER)
    clock.now += timedelta(days=1)
    first = scan(store)
    store.got.clear()
    assert scan(store) == first
    assert "tuner.pkl belongs to another run" in first[0].reason
    # the state once more, beside the index
    assert store.got == {layout.INDEX: 1, named(1): 1}


# --- older runs ---


def look_back(store) -> tuple[str, ...]:
    experiment = read_experiment(store)
    older = older_states(store.list_dir(), experiment.state_file.name)
    return describe_older_runs(store, older, experiment.state)


def test_the_trials_of_an_older_run_are_counted_with_what_to_do(store):
    put_run(store, 1, [failed("a1"), failed("a2"), make_row("a3")])
    put_run(store, 2, [failed("b1")])
    (note,) = look_back(store)
    assert note.startswith(f"{named(1)} of an older run holds 3 trials (2 ERROR, 1 TERMINATED)")
    assert "a later time than 2026-01-01_00-00-00" in note


def test_of_an_older_run_that_ended_well_nothing_is_to_be_done(store):
    put_run(store, 1, [make_row("a1")])
    put_run(store, 2, [failed("b1")])
    (note,) = look_back(store)
    assert note.endswith(
        "1 trial (1 TERMINATED) that the newest state does not have; they are not restored."
    )


def test_the_newest_state_of_an_older_run_counts_for_it(store):
    put_run(store, 1, [failed("a1")])
    put_run(store, 1, [make_row("a1")], commit=1)
    put_run(store, 2, [make_row("a1b")], _resumed=True)
    put_run(store, 3, [failed("b1")])
    put_run(store, 3, [failed("b1")], commit=1)
    (note,) = look_back(store)
    assert note.startswith(f"{named(2)} of an older run")


@pytest.mark.parametrize("restored_by", ["Ray", "a commit", "both"])
def test_trials_that_were_all_started_over_belong_to_the_run_they_replace(store, restored_by):
    """`Trial.reset` draws new ids, ours are made from the restore: none of the old ones is left."""
    put_run(store, 1, [failed("a1"), failed("a2")])
    if restored_by != "a commit":
        put_run(store, 2, [failed("b1"), failed("b2")], _resumed=True)
    if restored_by != "Ray":  # a commit keeps what its base says of the driver
        day = 1 if restored_by == "a commit" else 2
        put_run(store, day, [make_row("c1"), make_row("c2")], commit=1, _resumed=day == 2)
    assert look_back(store) == ()


def test_what_does_not_say_how_it_began_raises_no_alarm(store):
    put_run(store, 1, [failed("a1")])
    put_run(store, 2, [failed("b1")], _resumed=None)
    assert look_back(store) == ()


def test_states_that_share_a_trial_are_of_one_run(store):
    put_run(store, 1, [failed("a1"), failed("a2")])
    put_run(store, 2, [failed("a1"), failed("b2")])
    assert look_back(store) == ()


def test_a_damaged_older_state_is_named_and_does_no_harm(store):
    put_run(store, 1, [failed("a1")])
    store.put(named(2), b"{")
    put_run(store, 3, [failed("c1")])
    damaged, older = look_back(store)
    assert damaged.startswith(f"{named(2)} was not checked for older trials: not a whole")
    assert older.startswith(f"{named(1)} of an older run")


def test_of_many_older_runs_only_some_are_read_and_the_rest_is_counted(store, monkeypatch):
    monkeypatch.setattr(older_runs, "MAX_FILES", 2)
    for day in range(1, 6):
        put_run(store, day, [failed(f"t{day}")])
    fourth, third, rest = look_back(store)
    assert (fourth[:40], third[:40]) == (named(4)[:40], named(3)[:40])
    assert rest == f"2 older states were not checked, the newest is {named(2)}"
    monkeypatch.setattr(older_runs, "MAX_FILES", 3)
    assert look_back(store)[-1] == f"1 older state was not checked, the newest is {named(1)}"


def test_a_newer_state_that_cannot_be_used_is_not_an_older_run(store):
    put_run(store, 1, [failed("a1")])
    store.put(named(2), b"{")
    assert look_back(store) == ()


# --- searchers of two runs ---


def test_the_searcher_of_the_newest_run_counts_whatever_its_kind(store):
    """Of two runs under one name, the first had a searcher of its own and the second has Ray's."""
    put_run(store, 2, [failed()])
    first = {"total_samples": 9, "finished": False}
    second = {"_total_samples": 3, "_finished": False}
    store.put("search_gen_state-2026-01-01_00-00-00.json", pickle.dumps(first))
    store.put("basic-variant-state-2026-01-02_00-00-00.json", pickle.dumps(second))
    experiment = read_experiment(store)
    assert (experiment.samples_left, experiment.searcher_lost) == (2, "")
