"""One experiment, its columns and one trial, as strict JSON: from real files, and from hostile ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import (
    InvalidInputError,
    StateUnreadableError,
    StorageError,
    UnknownTrialError,
)
from airflow_tune_restore.experiments.read import StateReader
from airflow_tune_restore.experiments.state import KEEP_ALL
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.printable import is_printable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.views import columns, shown
from airflow_tune_restore.views.experiment import show_column, show_experiment
from airflow_tune_restore.views.shown import ShownExperiments
from airflow_tune_restore.views.trial import MAX_ERROR_CHARACTERS, show_trial
from tests.support import FAILED, GOLDEN
from tests.support.experiments.built import (
    STATE_NAME,
    config_of,
    make_experiment,
    make_row,
    make_state,
)
from tests.support.records import night, start_night

REAL = sorted(GOLDEN.glob("ray-*/killed")) + sorted(path for path in FAILED.iterdir())
HOSTILE = "<img src=x onerror=alert(1)>\u202e\n\x1b[31m::group::"


def strict(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())


def read(store: ObjectStore) -> tuple[shown.ShownExperiment, Any]:
    return ShownExperiments().read(store, store.uri)


def show(store: ObjectStore, **options: Any) -> dict[str, Any]:
    found, root = read(store)
    return strict(show_experiment(store, root, found, **options))


def column(store: ObjectStore, name: str) -> list[Any]:
    return strict(show_column(store, read(store)[0], name))["values"]


def all_columns(store: ObjectStore) -> dict[str, list[Any]]:
    found, root = read(store)
    names = show_experiment(store, root, found)["available"]
    return {name: strict(show_column(store, found, name))["values"] for name in names}


def trial(store: ObjectStore, trial_id: str) -> dict[str, Any]:
    return strict(show_trial(store, read(store)[0], trial_id))


def made(*rows: list[str], **state: Any) -> MemoryStore:
    store = MemoryStore()
    store.put(STATE_NAME, make_state(list(rows), **state))
    return store


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_in(part)]
    if isinstance(value, list):
        return [text for item in value for text in texts_in(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("directory", REAL, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_real_rays_wrote_is_shown(directory):
    store = open_store(str(directory))
    rows = StateReader(KEEP_ALL)(store, store.list_dir()).state.trials

    found = show(store)

    trials = found["trials"]
    assert trials["ids"] == [row.trial_id for row in rows]
    assert trials["order"][:3] == ["status", "iteration", "metrics/score"]
    assert trials["columns"]["status"] == [row.status for row in rows]
    assert trials["columns"]["metrics/score"] == [row.last_result.get("score") for row in rows]
    assert (found["metric"], found["mode"]) == ("score", "max")
    assert {len(values) for values in all_columns(store).values()} == {len(rows)}


@pytest.mark.parametrize("directory", REAL, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_trial_has_its_whole_config_and_its_errors(directory):
    store = open_store(str(directory))
    for row in StateReader(KEEP_ALL)(store, store.list_dir()).state.trials:
        found = trial(store, row.trial_id)
        assert set(found["config"]) >= set(config_of(row)) - {"train_loop_config"}
        assert found["checkpoint"] is None or found["checkpoint"].startswith("checkpoint_")
        error = directory / str(row.trial_dir) / "error.txt"
        assert bool(found["error_file"]) == error.exists()


def test_differing_parameters_are_columns_and_those_of_the_search_come_first():
    store = made(
        make_row("a", config={"seed": 1, "lr": 0.1, "same": 5}, evaluated_params={"lr": 0.1}),
        make_row("b", config={"seed": 2, "lr": 0.2, "same": 5}, evaluated_params={"lr": 0.2}),
    )
    found = show(store)
    assert found["trials"]["order"][3:] == ["config/lr", "config/seed"]
    assert "config/same" in found["available"]
    assert column(store, "config/same") == [5, 5]


def test_a_parameter_that_one_trial_lacks_differs():
    store = made(make_row("a", config={"lr": 0.1}), make_row("b", config={"lr": 0.1, "warm": True}))
    assert show(store)["trials"]["columns"]["config/warm"] == [None, True]


def test_nested_names_are_those_of_ray():
    store = made(
        make_row("a", config={"net": {"depth": 3}}, last_result={"eval": {"loss": 0.5}}),
    )
    assert column(store, "config/net/depth") == [3]
    assert column(store, "metrics/eval/loss") == [0.5]


@pytest.mark.parametrize(
    ("value", "in_config", "in_column"),
    [
        (float("nan"), "nan", None),
        (float("inf"), "inf", None),
        (-float("inf"), "-inf", None),
        (10**400, f"{str(10**400)[:10]}", None),
        (2**53 + 1, str(2**53 + 1), None),
        (True, True, True),
        (None, None, None),
        (1.5, 1.5, 1.5),
    ],
)
def test_a_number_that_browsers_would_change_is_never_shown_as_another(value, in_config, in_column):
    store = made(make_row("a", config={"x": value}, last_result={"score": value}))
    shown_config = trial(store, "a")["config"]["x"]
    if isinstance(in_config, str):
        assert shown_config.startswith(in_config)
    else:
        assert shown_config == in_config
    in_table = column(store, "metrics/score")[0]
    assert in_table == in_column or isinstance(in_table, str)


def test_markup_bidi_and_line_ends_are_one_line_of_text():
    store = made(
        make_row("a", config={HOSTILE: HOSTILE}, last_result={HOSTILE: HOSTILE, "score": 1}),
        make_row("b", config={HOSTILE: "other"}, trainable_name=HOSTILE),
    )
    names = show(store)["available"]
    values = [show(store), trial(store, "a"), trial(store, "b"), all_columns(store)]
    for text in texts_in(values):
        assert is_printable(text)
    assert any("<img" in name for name in names)


def test_an_odd_row_costs_its_trial_alone():
    deep = json.loads("[" * 50 + "]" * 50)
    nested: Any = 1
    for _ in range(300):
        nested = {"a": nested}
    store = made(
        make_row("good", last_result={"score": 2}),
        ["not JSON", "{}"],
        make_row("deep", config={"x": deep, "y": nested}, last_result={"score": {"a": deep}}),
        make_row("odd", config="not a dict", last_result=["neither"], status="DANCING"),
    )
    found = show(store)
    assert found["trials"]["ids"] == ["good", "row-2", "deep", "odd"]
    assert found["trials"]["columns"]["metrics/score"][0] == 2
    assert trial(store, "row-2")["problem"]


def test_an_experiment_without_a_state_is_shown_with_the_reason(tmp_path):
    shutil.copy(FAILED / "errored" / "tuner.pkl", tmp_path)
    store = open_store(str(tmp_path))
    found = show(store)
    assert found["trials"]["ids"] == []
    assert found["state_file"] is None
    assert found["metric"] == "score"
    with pytest.raises(UnknownTrialError):
        trial(store, "a")


def test_a_damaged_state_is_shown_as_unreadable():
    store = MemoryStore()
    store.put(STATE_NAME, b'{"trial_data": [')
    assert show(store)["health"] == "unreadable"


def test_a_directory_that_is_no_experiment_is_refused():
    store = MemoryStore()
    store.put("notes.txt", b"hello")
    with pytest.raises(StateUnreadableError, match="neither"):
        read(store)


def test_without_tuner_pkl_the_metric_comes_from_the_state():
    found = show(made(make_row("a", last_result={"score": 3})))
    assert found["metric"] == "score"
    assert found["mode"] is None
    assert found["trials"]["columns"]["metrics/score"] == [3]


def test_the_last_failure_that_counts_and_the_quarantine_are_shown():
    store = made(make_row("done"), make_row("bad", status="ERROR", error=True))
    night(store, "r1")
    night(store, "r2")
    found = show(store)
    assert set(found["quarantine"]) == {"bad"}
    assert "error" in found["trials"]["order"]  # the first question of a person who is on call
    causes = dict(zip(found["trials"]["ids"], column(store, "cause"), strict=True))
    assert causes["bad"] == "trainable"
    assert causes["done"] == ""
    failures = trial(store, "bad")["failures"]
    assert [failure["restore_id"] for failure in failures] == ["r1", "r2"]
    assert not any(failure["released"] for failure in failures)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"trials": {"bad": 1}}', b"\xff\xfe"])
def test_an_unreadable_ledger_costs_itself_alone(body):
    store = made(make_row("bad", status="ERROR", error=True))
    store.put(layout.LEDGER, body)
    found = show(store)
    assert found["trials"]["ids"] == ["bad"]
    assert "unreadable" in found["ledger_warning"]
    assert column(store, "error") == [""]


def test_a_restore_at_work_counts(tmp_path):
    rows = [make_row("bad", status="ERROR", error=True)]
    store = open_store(str(make_experiment(tmp_path / "one", rows, total_samples=1)))
    start_night(store)
    found = show(store)
    assert found["health"] == "running"
    assert "r1" in found["reason"]


def test_a_column_of_another_kind_is_refused():
    with pytest.raises(InvalidInputError, match="config/"):
        column(made(make_row("a")), "rows/secret")


def test_the_end_of_a_long_error_file_is_shown_line_by_line():
    store = made(make_row("a", status="ERROR"))
    lines = [f"line {number} {HOSTILE.strip()}" for number in range(5000)]
    store.put("dir_a/error.txt", "\n".join(lines).encode())
    error = trial(store, "a")["error_file"]
    assert len(error) <= MAX_ERROR_CHARACTERS
    assert "line 4999" in error.splitlines()[-2]
    assert all(line.isprintable() for line in error.splitlines())


def test_an_error_file_is_not_a_way_to_read_secrets_of_the_server(tmp_path):
    secret = tmp_path / "airflow.cfg"
    secret.write_text("fernet_key = canary")
    directory = make_experiment(tmp_path / "one", [make_row("a", status="ERROR")])
    (directory / "dir_a").mkdir()
    (directory / "dir_a" / "error.txt").symlink_to(secret)
    error = trial(open_store(str(directory)), "a")["error_file"]
    assert "cannot be read" in error
    assert "canary" not in error


def test_an_error_file_that_is_too_large_is_named():
    store = made(make_row("a", status="ERROR"))
    store.put("dir_a/error.txt", b"x" * (5 * 1024 * 1024))
    assert "cannot be read" in trial(store, "a")["error_file"]


class _Counting(MemoryStore):
    """Counts how often a state is read."""

    reads = 0

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        type(self).reads += key.startswith("experiment_state-")
        return super().get(key, max_bytes=max_bytes)


def test_a_state_is_read_again_only_when_the_root_has_changed(monkeypatch):
    monkeypatch.setattr(_Counting, "reads", 0)
    store, kept = _Counting(), ShownExperiments()
    store.put(STATE_NAME, make_state([make_row("a")]))
    for _ in range(3):
        found, root = kept.read(store, "label")
        show_experiment(store, root, found)
    assert _Counting.reads == 1
    store.put(STATE_NAME, make_state([make_row("a"), make_row("b")]))
    assert len(kept.read(store, "label")[0].trials) == 2
    assert _Counting.reads == 2


def test_no_more_experiments_are_kept_than_fit(monkeypatch):
    monkeypatch.setattr(shown, "MAX_TRIALS", 3)
    monkeypatch.setattr(_Counting, "reads", 0)
    kept, stores = ShownExperiments(), [_Counting(root=f"{n}/") for n in range(3)]
    for store in stores:
        store.put(STATE_NAME, make_state([make_row("a"), make_row("b")]))
    for store in (*stores, stores[2], stores[0]):
        kept.read(store, store.uri)
    assert _Counting.reads == 4


def test_values_beyond_the_limit_of_memory_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(columns, "MAX_KEPT_BYTES", 1)
    store = made(*(make_row(f"t{n}", config={"x": n}) for n in range(4)))
    found = show(store)
    assert len(found["trials"]["ids"]) == 4
    assert "3 trials are too many" in found["warnings"][-1]
    assert column(store, "config/x") == [0, None, None, None]


def test_the_first_columns_stay_within_their_size(monkeypatch):
    monkeypatch.setattr("airflow_tune_restore.views.experiment.MOST_COLUMN_CHARACTERS", 100)
    store = made(
        *(make_row(f"t{n}", config={"long": f"{n}" * 150, "x": n}) for n in range(3)),
    )
    found = show(store)["trials"]
    assert found["order"] == ["status", "iteration", "metrics/score"]
    assert list(found["columns"]) == found["order"]


def test_no_more_than_two_hundred_columns_are_offered():
    many = {f"x{n}": n for n in range(1000)}
    store = made(make_row("a", config=many, last_result=many), make_row("b", last_result=many))
    names = show(store)["available"]
    assert len(names) == 200
    assert {name.partition("/")[0] for name in names} >= {"config", "metrics", "status"}


class _BrokenLedger(MemoryStore):
    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        if key == layout.LEDGER:
            raise StorageError("The store does not answer.")
        return super().get(key, max_bytes=max_bytes)


def test_a_ledger_that_the_store_does_not_give_is_a_warning():
    store = _BrokenLedger()
    store.put(STATE_NAME, make_state([make_row("a")]))
    store.put(layout.LEDGER, b"{}")
    assert "does not answer" in show(store)["ledger_warning"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(config=JSON, result=JSON)
def test_whatever_a_row_holds_the_answers_are_strict_json(config, result):
    store = made(make_row("good"), make_row("a", config=config, last_result=result))
    found, root = read(store)
    values = [show_experiment(store, root, found), show_trial(store, found, "a")]
    values += [show_column(store, found, name) for name in values[0]["available"]]
    assert all(map(is_printable, texts_in(strict(values))))


def test_tuner_pkl_of_another_run_is_not_shown_as_its_own(tmp_path):
    directory = Path(shutil.copytree(FAILED / "errored", tmp_path / "errored"))
    state = next(directory.glob("experiment_state-*"))
    body = state.read_text().replace('trainable_name\\": \\"', 'trainable_name\\": \\"other_')
    state.write_text(body)
    found = show(open_store(str(directory)))
    assert found["mode"] is None
    assert found["trainable"].startswith("other_")
