"""Experiments on a disk with unexpected links and files: which experiments each of them affects."""

import os
from datetime import timedelta

import pytest

from airflow_tune_restore.experiments.evidence import DriverStatus
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.raw_row import MalformedStateError, checkpoint_fields
from airflow_tune_restore.experiments.read import read_experiment, read_state
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.state import KEEP_ALL
from airflow_tune_restore.experiments.tuner_file import read_tuner
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state

AT_ONCE = timedelta(0)
LONG_AGO = 10**9


def put_good(prefix, name="good"):
    return make_experiment(prefix / name, [make_row("a", status="ERROR")])


def verdicts(prefix, **options):
    reports = scan(LocalStore(prefix), **{"stale_after": AT_ONCE, **options})
    return {report.experiment.removeprefix(f"{prefix}/"): report.health for report in reports}


def put_unstarted(prefix):
    (prefix / "new").mkdir()
    (prefix / "new" / "tuner.pkl").write_bytes(b"x")
    return prefix / "new"


# --- one experiment that cannot be asked about


@pytest.mark.parametrize("linked", [layout.ROOT, layout.LEASE])
def test_one_that_never_started_and_whose_lease_is_a_link_stops_no_other(tmp_path, linked):
    put_good(tmp_path)
    own = put_unstarted(tmp_path) / linked
    own.parent.mkdir(exist_ok=True)
    own.symlink_to(tmp_path)
    assert verdicts(tmp_path) == {"good": Health.ERRORED, "new": Health.UNREADABLE}


def test_the_check_for_a_driver_may_fail(tmp_path):
    put_good(tmp_path)
    put_unstarted(tmp_path)

    def ask(experiment):
        if experiment.endswith("new"):
            raise RuntimeError("a plugin")
        return DriverStatus(is_running=False, found="none")

    assert verdicts(tmp_path, ask_driver=ask) == {
        "good": Health.ERRORED,
        "new": Health.UNREADABLE,
    }


def test_an_unexpected_error_of_one_listing_does_not_stop_the_others(tmp_path, monkeypatch):
    put_good(tmp_path)
    put_good(tmp_path, "bad")
    list_dir = LocalStore.list_dir

    def fails(self, path=""):
        if self.uri.endswith("bad"):
            raise RuntimeError("a disk")
        return list_dir(self, path)

    monkeypatch.setattr(LocalStore, "list_dir", fails)
    assert verdicts(tmp_path) == {"good": Health.ERRORED, "bad": Health.UNREADABLE}


# --- a prefix that looks like an experiment itself


def test_an_unreadable_state_without_a_name_of_rays_does_not_hide_those_below_it(tmp_path):
    put_good(tmp_path)
    (tmp_path / "experiment_state-x.json").symlink_to("experiment_state-x.json")
    found = verdicts(tmp_path)
    assert found.pop(str(tmp_path)) is Health.UNREADABLE
    assert found == {"good": Health.ERRORED}


def test_nor_does_one_whose_reading_fails_unexpectedly(tmp_path, monkeypatch):
    put_good(tmp_path)
    (tmp_path / "experiment_state-x.json").write_bytes(b"x")
    get = LocalStore.get

    def fails(self, key, **limits):
        if key == "experiment_state-x.json":
            raise RuntimeError("a disk")
        return get(self, key, **limits)

    monkeypatch.setattr(LocalStore, "get", fails)
    assert verdicts(tmp_path)["good"] is Health.ERRORED


def test_a_prefix_that_is_an_experiment_is_logged_and_not_shown_in_the_shell(tmp_path, caplog):
    caplog.set_level("INFO")
    prefix = put_good(tmp_path, "prefix")
    assert list(verdicts(prefix)) == [str(prefix)]
    assert "does not look below it" not in caplog.text  # it holds no directory
    put_good(prefix)
    assert list(verdicts(prefix)) == [str(prefix)]
    assert f"{prefix} is an experiment itself, so a scan does not look below it" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}
    caplog.clear()
    assert list(verdicts(tmp_path)) == ["prefix"]
    assert "does not look below it" not in caplog.text


# --- links that lead out of the prefix


@pytest.fixture
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture
def listed(monkeypatch):
    """Return what was listed; a scan that never ends fails instead."""
    paths, list_dir = [], LocalStore.list_dir

    def count(self, path=""):
        paths.append(f"{self.uri}/{path}")
        assert len(paths) < 1000
        return list_dir(self, path)

    monkeypatch.setattr(LocalStore, "list_dir", count)
    return paths


def test_links_elsewhere_that_lead_to_each_other_are_not_followed_for_ever(
    tmp_path, elsewhere, listed
):
    (tmp_path / "a").symlink_to(elsewhere)
    for place in ("x", "y", "z"):
        put_good(elsewhere / place)
        for number in range(20):
            (elsewhere / f"to_{place}_{number}").symlink_to(elsewhere / place)
            (elsewhere / place / f"up_{number}").symlink_to(elsewhere)
            (elsewhere / place / f"self_{number}").symlink_to(elsewhere / place)
    found = verdicts(tmp_path)
    assert {f"a/{place}/good" for place in ("x", "y", "z")} <= set(found)
    assert len(listed) < 100
    assert set(found.values()) == {Health.ERRORED}


def test_of_two_links_to_one_place_always_the_same_is_followed(tmp_path, elsewhere, listed):
    put_good(elsewhere, "e")
    for name in ("c", "b", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(elsewhere)
    for _ in range(5):
        assert list(verdicts(tmp_path)) == ["b/link/e"]


def test_an_experiment_behind_two_links_is_found(tmp_path, elsewhere):
    put_good(elsewhere / "far", "e")
    (elsewhere / "near").mkdir()
    (elsewhere / "near" / "exp").symlink_to(elsewhere / "far" / "e")
    (tmp_path / "team").symlink_to(elsewhere / "near")
    put_good(tmp_path)
    assert verdicts(tmp_path) == {"good": Health.ERRORED, "team/exp": Health.ERRORED}


# --- one bad entry of an experiment


def loop(path):
    path.symlink_to(path.name)


def choices(experiment, **options):
    store = LocalStore(experiment)
    return read_checkpoint_choices(store, list(read_experiment(store).trials), **options)


def put_two(tmp_path, status="ERROR"):
    """Two trials that record a checkpoint, of which the second has it."""
    rows = [make_row(name, status=status, checkpoint=True) for name in ("bad", "good")]
    experiment = make_experiment(tmp_path / "e", rows, total_samples=2)
    name = choices_name(experiment)
    (experiment / "dir_good" / name).mkdir(parents=True)
    (experiment / "dir_good" / name / "model").write_bytes(b"x")
    return experiment


def choices_name(experiment):
    trial = read_experiment(LocalStore(experiment)).trials[0]
    checkpoint = trial.recorded_checkpoint(checkpoint_fields())
    assert checkpoint is not None
    return checkpoint.name


@pytest.mark.parametrize("status", ["ERROR", "RUNNING"])
@pytest.mark.parametrize("target", ["dir_bad", "x" * 300], ids=["itself", "long name"])
def test_a_trial_whose_directory_leads_nowhere_costs_no_other(tmp_path, status, target):
    experiment = put_two(tmp_path, status)
    (experiment / "dir_bad").symlink_to(target)
    for path in experiment.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    found = choices(experiment)
    assert found["bad"].lost
    assert "dir_bad" in found["bad"].reason
    assert found["good"].reason.startswith("resumed from")
    # the directories of trials are looked at before it is called dead
    assert verdicts(tmp_path, stale_after=timedelta(hours=1)) == {
        "e": Health.ERRORED if status == "ERROR" else Health.INTERRUPTED
    }


def test_rows_that_lead_nowhere_cost_no_other_trial(tmp_path):
    experiment = put_two(tmp_path)
    (experiment / "dir_bad").mkdir()
    loop(experiment / "dir_bad" / "result.json")
    found = choices(experiment)
    assert (found["bad"].lost, found["good"].lost) == (True, False)
    assert "result.json" in found["bad"].reason


def test_rows_that_are_too_large_cost_no_other_trial(tmp_path):
    experiment = put_two(tmp_path)
    (experiment / "dir_bad").mkdir()
    with (experiment / "dir_bad" / "result.json").open("wb") as file:
        file.truncate(layout.MAX_RESULT_BYTES + 1)
    found = choices(experiment)
    assert (found["bad"].lost, found["good"].lost) == (True, False)
    assert "at most" in found["bad"].reason


@pytest.mark.parametrize(
    "name",
    ["experiment_state-2026-11-23_09-00-00.json", "experiment_state-2026-11-23_11-00-00.json"],
    ids=["older", "newer"],
)
def test_a_state_that_leads_nowhere_is_passed_over(tmp_path, name):
    experiment = put_good(tmp_path)
    loop(experiment / name)
    found = read_experiment(LocalStore(experiment))
    assert found.state_file.name == STATE_NAME
    assert any(f"{name} was skipped: Cannot read" in text for text in found.warnings)
    assert verdicts(tmp_path) == {"good": Health.ERRORED}


def test_a_searcher_whose_state_leads_nowhere_may_draw_more(tmp_path):
    experiment = make_experiment(tmp_path / "e", [make_row("a")], total_samples=1)
    (searcher,) = experiment.glob("basic-variant-state-*")
    searcher.unlink()
    loop(searcher)
    assert read_experiment(LocalStore(experiment)).samples_left is None
    assert len(verdicts(tmp_path)) == 1
    assert Health.UNREADABLE not in verdicts(tmp_path).values()


def test_a_tuner_that_leads_nowhere_is_lost(tmp_path):
    experiment = put_good(tmp_path)
    (experiment / "tuner.pkl").unlink()
    loop(experiment / "tuner.pkl")
    store = LocalStore(experiment)
    assert "Too many levels" in read_tuner(store, store.list_dir()).lost


# --- a file that has grown since it was listed


class Grown(MemoryStore):
    """Lists a file with fewer bytes than it holds."""

    def list_dir(self, path=""):
        return [entry._replace(size_bytes=self.listed) for entry in super().list_dir(path)]


@pytest.mark.parametrize("listed", [10, 2 * 1024**2])
def test_no_more_is_read_of_a_state_than_was_listed_and_some(listed):
    body = make_state([make_row("t")])
    store = Grown()
    store.listed = listed
    store.put(STATE_NAME, body + b" " * (2 * listed + 1024**2 - len(body)))
    (entry,) = store.list_dir()
    assert len(read_state(store, entry, KEEP_ALL)[1].trials) == 1
    store.put(STATE_NAME, body + b" " * (2 * listed + 1024**2 + 1 - len(body)))
    with pytest.raises(MalformedStateError, match=f"changes while it is read: {listed} bytes"):
        read_state(store, entry, KEEP_ALL)


def test_no_more_is_read_of_rows_than_was_listed_and_some(tmp_path):
    experiment = put_two(tmp_path)
    store = Grown()
    store.listed = 10
    store.put("dir_bad/result.json", b" " * (2 * 1024**2))
    trials = list(read_experiment(LocalStore(experiment)).trials)
    found = read_checkpoint_choices(store, trials)
    assert "holds more than" in found["bad"].reason
