"""A restore of the trials that `only` takes is that of the same trials named by their ids."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError, StorageError, UnknownTrialError
from airflow_tune_restore.experiments.read import read_base, read_experiment
from airflow_tune_restore.protocol import lease_watch
from airflow_tune_restore.protocol.lease_objects import HolderStatus
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore import narrow as narrow_module
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.only import Only
from airflow_tune_restore.restore.prepare import plan_restore, prepare_restore, preview_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.release import release_trials
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.wrapped import WrappedStore
from tests.support import FAILED
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import beat, leave_attempt, night, start_night

FLAGS = ResumeFlags.from_flags(resume_errored=True)
ERRORS = {
    "memory": "Failure # 1 (occurred at 2026-11-23_10-00-00)\nray.exceptions.OutOfMemoryError: Task was "
    "killed due to the node running low on memory.\n",
    "cuda": 'Traceback (most recent call last):\n  File "/a/train.py", line 3, in step\n    x()\n'
    "RuntimeError: CUDA error: device-side assert\n",
}  # fmt: skip
ROWS = [
    make_row("memory", status="ERROR", error=True, last_result={"loss": 0.2, "v": {"acc": 0.5}}),
    make_row("cuda", status="ERROR", error=True, last_result={"loss": 0.4, "v": {"acc": 0.9}}),
    make_row("silent", status="ERROR", error=True, last_result={"loss": float("nan")}),
    make_row("good", last_result={"loss": 0.1, "done": True}),
    make_row("waits", status="PENDING"),
    make_row("runs", status="RUNNING", last_result={"loss": 0.3}),
]
IDS = ["memory", "cuda", "silent", "good", "waits", "runs"]
CHOSEN = {"memory", "cuda", "silent", "waits", "runs"}


def make(directory) -> LocalStore:
    """Six trials and two samples that were never drawn; one of the three failures has no error.txt."""
    make_experiment(directory, ROWS, total_samples=8, live=["waits", "runs"])
    for name, text in ERRORS.items():
        (directory / f"dir_{name}").mkdir()
        (directory / f"dir_{name}" / "error.txt").write_text(text)
    return LocalStore(directory)


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "sweep")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An experiment to which no test writes."""
    return make(tmp_path_factory.mktemp("shared") / "sweep")


def options(*only, flags=FLAGS, trials=(), **more) -> PrepareOptions:
    return PrepareOptions(
        choices=PlanChoices(flags=flags, trials=trials, **more),
        only=Only.parse(only),
        stale_after=timedelta(0),
    )


def taken(store, *only, **more) -> set[str]:
    return {
        trial.trial_id for trial in plan_restore(store, "r1", options(*only, **more)).plan.to_run
    }


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["trial=cuda, good"], {"cuda"}),  # a finished trial is not what the flags choose
        (["status=ERROR"], {"memory", "cuda", "silent"}),
        (["status=PENDING", "status=RUNNING"], {"waits", "runs"}),
        (["cause=out_of_memory"], {"memory"}),
        (["cause=trainable"], {"cuda"}),
        (["cause=unknown"], {"silent"}),
        (["cause=out_of_memory", "cause=unknown"], {"memory", "silent"}),
        (["cause=out_of_memory", "cause=trainable", "metric=loss<0.3"], {"memory"}),
        (["error=CUDA.*assert"], {"cuda"}),
        (["error=^RuntimeError: CUDA"], {"cuda"}),
        (["error=low on memory", "error=CUDA"], {"memory", "cuda"}),
        (["error=^$"], {"silent"}),
        (["metric=loss<0.35"], {"memory", "runs"}),
        (["metric=loss>0.25", "metric=loss<0.35"], {"runs"}),
        (["metric=v/acc>=0.9"], {"cuda"}),
        (["metric=loss<100"], {"memory", "cuda", "runs"}),
        (["experiment=sweep"], CHOSEN),
        (["experiment=swe*", "trial=runs"], {"runs"}),
    ],
)  # fmt: skip
def test_which_trials_are_taken(shared, only, expected):
    assert taken(shared, *only) == expected


TEXTS = {
    "trial": st.sampled_from(IDS),
    "status": st.sampled_from(["ERROR", "PENDING", "RUNNING", "TERMINATED"]),
    "cause": st.sampled_from(["out_of_memory", "trainable", "unknown", "node_lost"]),
    "error": st.sampled_from(["CUDA", "memory", "x"]),
    "metric": st.sampled_from(["loss<0.3", "loss>=0.2", "v/acc>0"]),
}
ONLY = st.lists(
    st.sampled_from(sorted(TEXTS)).flatmap(lambda key: TEXTS[key].map(lambda value: f"{key}={value}")),
    min_size=1, max_size=4,
)  # fmt: skip


@given(ONLY, st.sampled_from(ResumeType), st.sampled_from(ResumeType), st.sampled_from(ResumeType))
def test_it_takes_some_of_what_the_flags_choose_and_the_plan_is_that_of_their_ids(
    shared, only, finished, unfinished, errored
):
    flags = ResumeFlags(finished=finished, unfinished=unfinished, errored=errored)
    whole = plan_restore(shared, "r1", PrepareOptions(choices=PlanChoices(flags=flags))).plan
    by_only = plan_restore(shared, "r1", options(*only, flags=flags)).plan
    ids = tuple(trial.trial_id for trial in by_only.to_run)
    assert set(ids) <= {trial.trial_id for trial in whole.to_run}
    assert not by_only.continues_search
    if ids:
        named = options("experiment=*", flags=flags, trials=ids)
        by_ids = plan_restore(shared, "r1", named).plan
        assert by_only.trials == by_ids.trials
        assert set(by_only.choices.trials) == set(ids)
    else:
        assert {trial.action for trial in by_only.trials} == {TrialAction.KEEP}


@given(ONLY, st.sampled_from(IDS))
def test_with_trials_both_must_name_a_trial(shared, only, trial_id):
    assert taken(shared, *only, trials=(trial_id,)) == taken(shared, *only) & {trial_id}


def test_without_a_match_nothing_is_to_do_and_the_reason_names_the_selection(store):
    nothing = prepare_restore(store, "r1", options("cause=node_lost"))
    assert isinstance(nothing, str)
    assert (
        "every trial stays as it is; no trial that would run matches only=cause=node_lost"
        in nothing
    )
    assert not store.list_dir(".tune_restore")


def test_a_missing_flag_is_still_named(store):
    nothing = prepare_restore(store, "r1", options("status=ERROR", flags=ResumeFlags()))
    assert "3 ERROR trials stay as they are: resume_errored=True or restart_errored=True" in nothing
    assert "matches only=status=ERROR" in nothing


def test_unfinished_trials_that_are_not_taken_do_not_become_terminated(store):
    flags = replace(FLAGS, unfinished=ResumeType.SKIP)
    for only in ("cause=node_lost", "trial=cuda"):
        plan = plan_restore(store, "r1", options(only, flags=flags)).plan
        assert {t.action for t in plan.trials if t.trial_id in ("waits", "runs")} == {"keep"}
    nothing = prepare_restore(store, "r1", options("cause=node_lost", flags=flags))
    assert "every trial stays as it is" in nothing


def test_a_preview_shows_the_same(store):
    plan, refusals = preview_restore(store, options("cause=node_lost"))
    assert not plan.changes_trials
    assert "no trial that would run matches only=cause=node_lost" in plan.warnings
    assert refusals == []


class Untouched(WrappedStore):
    """Of another team: nothing of it may be read."""

    def list_dir(self, path=""):
        raise AssertionError(path)

    get = stream = walk = list_dir


def test_an_experiment_that_no_glob_names_is_left_alone_before_anything_is_read(store):
    only = options("experiment=team_a/**")
    assert prepare_restore(Untouched(store), "r1", only) == (
        "no glob of only=experiment=team_a/** names it"
    )
    below = replace(options("experiment=sweep/**"), prefix=store.uri.removesuffix("/sweep"))
    assert isinstance(prepare_restore(store, "r1", below), PreparedRestore)
    plan, _ = preview_restore(store, only)
    assert not plan.changes_trials


def test_globs_alone_change_nothing_in_the_experiment(store):
    plan = plan_restore(store, "r1", options("experiment=sweep")).plan
    assert plan == plan_restore(store, "r1", PrepareOptions(choices=PlanChoices(flags=FLAGS))).plan


def test_ids_that_the_experiment_has_not(store):
    with pytest.raises(UnknownTrialError, match="no trial 'x'"):
        plan_restore(store, "r1", options("trial=x"))
    with pytest.raises(UnknownTrialError, match="no trial 'x'"):
        plan_restore(store, "r1", options("status=ERROR", trials=("cuda", "x")))
    plan = plan_restore(store, "r1", options("trial=cuda", "trial=of_another_sweep")).plan
    assert [trial.trial_id for trial in plan.to_run] == ["cuda"]
    assert "only: it has no trial of_another_sweep" in plan.warnings


def test_a_commit_leaves_every_other_row_byte_for_byte_and_the_search_alone(store):
    before = read_experiment(store).state.rows
    prepared = prepare_restore(store, "r1", options("cause=out_of_memory"))
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=60)
    leave_attempt(store, plan, "memory")
    summary = commit_restore(store, "r1")
    after = read_experiment(store)
    assert after.state.rows.keys() == before.keys()
    assert [key for key, row in after.state.rows.items() if row != before[key]] == ["memory"]
    assert (after.samples_left, summary.is_done) == (2, True)
    assert "1 resumed trial finished; 5 trials not chosen, left as recorded" in summary.headline()


def coupled(*only, **more):
    return options(*only, **more), LocalStore(FAILED / "asha")


def test_a_coupled_experiment_is_left_alone_with_the_way_out():
    all_run = ResumeFlags(errored=ResumeType.RESUME, finished=ResumeType.RESUME)
    given, store = coupled("status=ERROR", flags=all_run)
    plan, _ = preview_restore(store, given)
    assert not plan.changes_trials
    (note,) = [warning for warning in plan.warnings if "only=" in warning]
    assert (
        "only=status=ERROR matches 1 of 4 trials to run, and one run restores all or none" in note
    )
    assert "strategy='per_trial' (--strategy per_trial)" in note
    assert isinstance(prepare_restore(store, "r1", given), str)


def test_a_coupled_experiment_is_restored_as_usual_if_all_that_would_run_match():
    given, store = coupled("status=ERROR")
    plan = preview_restore(store, given)[0]
    as_usual = preview_restore(store, replace(given, only=Only()))[0]
    assert plan.changes_trials
    assert (plan.trials, plan.choices) == (as_usual.trials, as_usual.choices)


def test_globs_alone_restore_a_coupled_experiment_as_usual():
    given, store = coupled("experiment=asha")
    assert preview_restore(store, given)[0].is_whole_experiment
    assert preview_restore(store, given)[0].changes_trials


def test_a_coupled_experiment_without_a_match_has_that_reason():
    given, store = coupled("metric=no such metric<1")
    nothing = prepare_restore(store, "r1", given)
    assert "no trial that would run matches only=metric=no such metric<1.0" in nothing


def test_coupled_trials_run_alone_if_the_user_wants_it():
    given, store = coupled("status=ERROR", strategy="per_trial")
    errored = {t.trial_id for t in read_base(store).trials if t.status == "ERROR"}
    assert {trial.trial_id for trial in preview_restore(store, given)[0].to_run} == errored


def test_coupled_trials_that_are_named_by_id_stay_a_refusal():
    _, store = coupled("status=ERROR")
    errored = tuple(t.trial_id for t in read_base(store).trials if t.status == "ERROR")
    for only in ("status=ERROR", "status=PAUSED"):
        with pytest.raises(InvalidInputError, match=r"a restore of only some of them \(trials"):
            preview_restore(store, options(only, trials=errored))


def test_an_experiment_that_never_started_is_left_alone(store):
    for state in store.list_dir():
        if state.name.startswith("experiment_state-"):
            store.delete(state.name)
    given = replace(options("status=ERROR"), can_start=True)
    nothing = prepare_restore(store, "r1", given)
    assert "It has no trial yet to match only=status=ERROR" in nothing
    assert not store.list_dir(".tune_restore")


# the last failure of a trial


def test_a_failure_of_a_restore_counts_and_not_the_older_error_file(store):
    night(store, "r1", trial_id="memory", cause="node_lost", error="gone", error_type="")
    assert taken(store, "cause=out_of_memory") == set()
    assert taken(store, "cause=node_lost") == {"memory"}
    assert taken(store, "error=^gone") == {"memory"}
    night(store, "r2", trial_id="memory", cause="storage", error="full")
    assert taken(store, "cause=node_lost") == set()
    assert taken(store, "cause=storage") == {"memory"}


def test_an_unfinished_trial_has_the_cause_of_its_last_attempt(store):
    plan = start_night(store, "r1")
    long_ago = {"cause": "node_lost", "ended_at": "1970-01-01T00:00:01+00:00"}
    beat(store, leave_attempt(store, plan, "waits", result="failed", **long_ago))
    leave_attempt(store, plan, "waits", result="interrupted")
    commit_restore(store, "r1")
    assert read_base(store).trials[4].status == "PENDING"
    assert taken(store, "cause=node_lost") == {"waits"}


def test_a_result_after_the_failure_shows_that_something_else_ran_the_trial(store):
    night(store, "r1", trial_id="memory", cause="node_lost", ended_at="1970-01-01T00:00:01+00:00")
    assert read_base(store).trials[0].last_result_time > 1.0
    assert taken(store, "cause=out_of_memory") == {"memory"}


@pytest.mark.parametrize("ended_at", ["", "never", "9999-99-99"])
def test_an_unreadable_time_does_not_hide_a_failure(store, ended_at):
    night(store, "r1", trial_id="memory", cause="node_lost", ended_at=ended_at)
    assert taken(store, "cause=node_lost") == {"memory"}


def test_a_released_failure_is_still_the_last_one(store):
    for restore_id in ("r1", "r2"):
        night(store, restore_id, trial_id="memory", cause="trainable", error="oddity")
    assert taken(store, "error=oddity") == set()  # in quarantine
    release_trials(store, ["memory"], holder="test")
    assert taken(store, "error=oddity") == {"memory"}


def test_an_error_file_that_cannot_be_used_has_an_unknown_cause(store, monkeypatch):
    monkeypatch.setattr(narrow_module, "ERROR_FILE_BYTES", 100)
    assert taken(store, "cause=unknown") == {"memory", "cuda", "silent"}


def test_a_directory_and_a_link_that_leads_nowhere_are_not_an_error_file(store, tmp_path):
    for name, make_other in [("memory", Path.mkdir), ("cuda", lambda at: at.symlink_to(at))]:
        file = tmp_path / "sweep" / f"dir_{name}" / "error.txt"
        file.unlink()
        make_other(file)
    assert taken(store, "cause=unknown") == {"memory", "cuda", "silent"}


@given(st.binary(max_size=200), st.sampled_from(["error=x", "cause=unknown"]))
def test_no_content_of_an_error_file_raises(shared, content, only):
    class Planted(WrappedStore):
        def get(self, key, *, max_bytes=None):
            return content if key.endswith("error.txt") else super().get(key, max_bytes=max_bytes)

    assert taken(Planted(shared), only) <= {"memory", "cuda", "silent"}


def test_error_files_are_read_only_for_errors_and_only_if_they_are_asked_for(store):
    read = []

    class Watched(WrappedStore):
        def get(self, key, *, max_bytes=None):
            read.append((key, max_bytes))
            return super().get(key, max_bytes=max_bytes)

    def errors() -> set[str]:
        found = {key for key, limit in read if key.endswith("error.txt") and limit}
        read.clear()
        return found

    watched = Watched(store)
    for only in ("status=ERROR", "metric=loss<1", "experiment=sweep", "trial=cuda"):
        taken(watched, only)
        assert errors() == set()
    taken(watched, "cause=unknown", "status=ERROR", "status=RUNNING", "metric=loss<1")
    assert errors() == {"dir_memory/error.txt", "dir_cuda/error.txt"}


def test_a_store_that_fails_does_not_make_the_cause_unknown(store):
    class Broken(WrappedStore):
        def get(self, key, *, max_bytes=None):
            if key.endswith("error.txt"):
                raise StorageError("no answer")
            return super().get(key, max_bytes=max_bytes)

    with pytest.raises(StorageError, match="no answer"):
        taken(Broken(store), "cause=unknown")


def test_a_dead_restore_is_committed_first_and_its_failures_count(store, monkeypatch):
    """Its failures are in the ledger only then, so the selection is made again."""
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", 0.0)
    dead = start_night(store, "r1")
    beat(
        store, leave_attempt(store, dead, "cuda", result="failed", cause="node_lost", error="gone")
    )
    ended = HolderStatus(has_ended=True)
    given = replace(options("cause=node_lost"), ask_holder=lambda _: ended)
    prepared = prepare_restore(store, "r2", given)
    assert "no trial that would run matches only=cause=node_lost" in prepared.nothing_to_do
    plan, settled = start_restore(prepared, holder="test", ttl_seconds=60)
    assert settled.restore_id == "r1"
    assert [trial.trial_id for trial in plan.to_run] == ["cuda"]
    assert plan.choices.trials == ("cuda",)


def test_a_dead_restore_is_committed_even_if_nothing_matches_afterwards(store, monkeypatch):
    monkeypatch.setattr(lease_watch, "KNOWN_DEAD_SECONDS", 0.0)
    beat(store, leave_attempt(store, start_night(store, "r1"), "cuda"))
    ended = HolderStatus(has_ended=True)
    given = replace(options("cause=storage"), ask_holder=lambda _: ended)
    plan, settled = start_restore(
        prepare_restore(store, "r2", given), holder="test", ttl_seconds=60
    )
    assert (plan, settled.restore_id) == (None, "r1")
