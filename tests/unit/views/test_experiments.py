"""The list of experiments, and the best values that are read behind it."""

import json
import shutil
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.experiments.evidence import EvidenceKind, EvidenceRow, Indicates
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.restore.quarantine import Quarantine, path_below, read_quarantines
from airflow_tune_restore.storage.base import Entry, ObjectStore
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.views import best_values
from airflow_tune_restore.views.best_values import Best, BestValues, read_best
from airflow_tune_restore.views.experiments import list_experiments, show_row
from tests.support import FAILED, GOLDEN
from tests.support.experiments.built import (
    KILLED,
    STATE_NAME,
    make_experiment,
    make_report,
    make_row,
    make_state,
)
from tests.support.records import night, start_night
from tests.support.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 12, 1, tzinfo=UTC)
REAL = sorted(GOLDEN.glob("ray-*/killed"))


def listed(store: ObjectStore, known: BestValues | None = None) -> dict[str, Any]:
    """Return the list, after all best values were read."""
    known = known or BestValues()
    quarantines = read_quarantines(store, scan(store))
    list_experiments(store, quarantines, known, prefix="label", scanned_at=NOW)
    assert known.wait(PATIENCE_SECONDS)
    found = list_experiments(store, quarantines, known, prefix="label", scanned_at=NOW)
    return json.loads(json.dumps(found, allow_nan=False, ensure_ascii=False).encode())


def scored(*scores: Any, tuner: bytes | None = (KILLED / "tuner.pkl").read_bytes()) -> MemoryStore:
    """Return an experiment whose trials ended with these scores; with Ray's own tuner.pkl, of `max`."""
    store = MemoryStore()
    if tuner is not None:
        store.put(layout.TUNER_FILE, tuner)
    rows = [make_row(f"t{n}", last_result={"score": score}) for n, score in enumerate(scores)]
    store.put(STATE_NAME, make_state(rows))
    return store


@pytest.mark.parametrize("directory", REAL, ids=lambda path: path.parent.name)
def test_the_best_value_of_what_real_rays_wrote(directory):
    assert read_best(open_store(str(directory)))[:3] == ("score", "max", 8.0)


def test_the_list_has_health_best_value_and_path(tmp_path):
    for name in ("errored", "hopeless"):
        shutil.copytree(FAILED / name, tmp_path / "team" / name)
    found = listed(open_store(str(tmp_path)))
    assert found["pending"] == 0
    assert found["place"] == str(tmp_path)
    assert found["scanned_at"] == "2026-12-01T00:00:00+00:00"
    rows = {row["path"]: row for row in found["experiments"]}
    assert set(rows) == {"team/errored", "team/hopeless"}
    row = rows["team/hopeless"]
    assert (row["name"], row["health"], row["metric"], row["mode"]) == (
        "hopeless", "errored", "score", "max",
    )  # fmt: skip
    assert row["best"] == max(
        json.loads(line)["score"]
        for file in (tmp_path / "team" / "hopeless").glob("*/result.json")
        for line in file.open()
    )
    assert row["best_trial"]
    assert row["quarantined"] == 0
    assert row["restore"] is None
    assert sum(row["trials"].values()) == 4


def test_a_prefix_that_is_an_experiment_itself_has_no_path(tmp_path):
    shutil.copytree(FAILED / "errored", tmp_path / "errored")
    [row] = listed(open_store(str(tmp_path / "errored")))["experiments"]
    assert (row["path"], row["name"], row["best"] is None) == ("", "errored", False)


def test_numbers_that_are_none_are_never_the_best():
    nan, inf = float("nan"), float("inf")
    assert read_best(scored(nan, inf, 3, "9", None, True, 10**400, 2))[2:] == (3.0, "t2")


def test_without_tuner_pkl_the_metric_is_known_and_the_best_is_not():
    assert read_best(scored(1, 2, tuner=None)) == Best("score", None, None, None)


def test_the_smallest_is_the_best_if_the_mode_is_min():
    tuner = (KILLED / "tuner.pkl").read_bytes().replace(b"\x8c\x03max", b"\x8c\x03min")
    assert read_best(scored(5, 2, 7, tuner=tuner))[1:] == ("min", 2.0, "t1")


def test_no_value_without_results():
    assert read_best(scored(None))[1:] == ("max", None, None)


class _Slow(MemoryStore):
    """Answers when it is told to, and counts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.go, self.listed = threading.Event(), 0

    def list_dir(self, path: str = "") -> list[Entry]:
        self.go.wait(PATIENCE_SECONDS)
        self.listed += 1
        return super().list_dir(path)


def slow(*scores: Any) -> _Slow:
    made, store = scored(*scores), _Slow()
    store._objects = made._objects
    return store


def test_a_list_does_not_wait_for_values_and_says_how_many_are_pending():
    store, known = slow(1, 2), BestValues()
    report = make_report("one", experiment=store.uri, last_write=NOW)
    quarantines = [Quarantine(report, {})]
    first = list_experiments(store, quarantines, known, prefix="label", scanned_at=NOW)
    again = list_experiments(store, quarantines, known, prefix="label", scanned_at=NOW)
    assert first["pending"] == again["pending"] == 1
    assert first["experiments"][0]["best"] is None
    store.go.set()
    assert known.wait(PATIENCE_SECONDS)
    then = list_experiments(store, quarantines, known, prefix="label", scanned_at=NOW)
    assert (then["pending"], then["experiments"][0]["best"]) == (0, 2.0)
    assert store.listed == 1


def test_while_a_newer_value_is_read_the_older_one_is_shown():
    store, known = slow(1, 2), BestValues()
    store.go.set()
    report = make_report("one", last_write=NOW)
    known.ask(store, report)
    known.wait(PATIENCE_SECONDS)
    store.go.clear()
    newer = make_report("one", last_write=NOW + timedelta(minutes=1))
    answer = known.ask(store, newer)
    assert (answer.is_pending, answer.best.value) == (True, 2.0)
    store.go.set()
    assert known.wait(PATIENCE_SECONDS)
    assert not known.ask(store, newer).is_pending


class _Broken(MemoryStore):
    asked = 0

    def list_dir(self, path: str = "") -> list[Entry]:
        type(self).asked += 1
        raise self.error


@pytest.mark.parametrize("error", [StorageError("It does not answer."), ZeroDivisionError()])
def test_a_failed_reading_is_unknown_logged_and_not_tried_for_ever(monkeypatch, caplog, error):
    monkeypatch.setattr(_Broken, "asked", 0)
    monkeypatch.setattr(_Broken, "error", error, raising=False)
    known, report = BestValues(), make_report("one", last_write=NOW)
    for _ in range(3):
        known.ask(_Broken(), report)
        assert known.wait(PATIENCE_SECONDS)
    assert known.ask(_Broken(), report) == (Best(), False)
    assert _Broken.asked == 1
    assert len(caplog.records) == 1


def test_an_experiment_without_a_state_is_not_read():
    report = make_report("one", Health.NOT_STARTED, state_file=None)
    assert BestValues().ask(_Broken(), report) == (Best(), False)


def test_no_more_values_are_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(best_values, "MAX_ENTRIES", 2)
    known, store = BestValues(threads=1), scored(1)
    reports = [make_report(f"e{number}", last_write=NOW) for number in range(3)]
    for report in reports:
        known.ask(store, report)
        assert known.wait(PATIENCE_SECONDS)
    assert known.ask(store, reports[2]).is_pending is False
    assert known.ask(store, reports[0]).is_pending is True


def test_labels_keep_experiments_of_one_uri_apart():
    known, report = BestValues(), make_report("one", last_write=NOW)
    known.ask(scored(1), report, "a")
    known.ask(scored(2), report, "b")
    known.wait(PATIENCE_SECONDS)
    assert [known.ask(MemoryStore(), report, label).best.value for label in "ab"] == [1.0, 2.0]


def row_of(report: ExperimentReport, **quarantine: Any) -> dict[str, Any]:
    return show_row(Quarantine(report, **{"trials": {}, **quarantine}), "", Best())


def test_quarantined_trials_are_counted_and_an_unreadable_ledger_is_unknown():
    assert row_of(make_report("one"))["quarantined"] == 0
    row = row_of(make_report("one"), trials=None, warning="its ledger cannot be read")
    assert row["quarantined"] is None
    assert row["warnings"] == ["its ledger cannot be read"]


def test_quarantined_trials_of_a_store_are_counted(tmp_path):
    rows = [make_row("bad", status="ERROR", error=True)]
    store = open_store(str(make_experiment(tmp_path / "one", rows, total_samples=1)))
    night(store, "r1")
    night(store, "r2")
    [row] = listed(open_store(str(tmp_path)))["experiments"]
    assert row["quarantined"] == 1


def test_a_restore_at_work_is_named(tmp_path):
    rows = [make_row("bad", status="ERROR", error=True)]
    store = open_store(str(make_experiment(tmp_path / "one", rows, total_samples=1)))
    start_night(store, "r1")
    [row] = listed(open_store(str(tmp_path)))["experiments"]
    assert row["health"] == "running"
    assert row["restore"].startswith("r1 of test r1")


def test_a_restore_that_died_is_not_at_work():
    dead = EvidenceRow(name=EvidenceKind.RESTORE, found="r1 of x, silent for 2 h")
    alive = EvidenceRow(name=EvidenceKind.RESTORE, found="r1 of x", indicates=Indicates.ALIVE)
    assert row_of(make_report("one", evidence=(dead,)))["restore"] is None
    assert row_of(make_report("one", evidence=(alive,)))["restore"] == "r1 of x"


def test_texts_of_a_row_can_be_shown():
    hostile = "<b>\u202e\n\x1b[31m"
    report = make_report(hostile, reason=hostile, warnings=(hostile,))
    row = row_of(report, trials=None, warning=hostile)
    assert all(map(is_printable, [row["name"], row["reason"], *row["warnings"]]))


@pytest.mark.parametrize(
    ("prefix", "experiment", "path"),
    [
        ("/sweeps", "/sweeps/a/b", "a/b"),
        ("/sweeps", "/sweeps", ""),
        ("s3://bucket", "s3://bucket/what?/x", "what?/x"),
        ("s3://b/p?region=eu", "s3://b/p/x?region=eu", "x"),
    ],
)
def test_the_path_of_an_experiment_is_that_below_the_prefix(prefix, experiment, path):
    class At(MemoryStore):
        uri = prefix

    assert path_below(At(), make_report("x", experiment=experiment)) == path
