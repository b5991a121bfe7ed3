"""The newest complete checkpoint, by the evidence there is."""

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.protocol import bounded_json
from airflow_tune_restore.protocol.checkpoints import (
    CheckpointDir,
    RecordedCheckpoint,
    choose_checkpoint,
)
from airflow_tune_restore.storage.memory import MemoryStore
from tests.support.experiments.built import STATE_NAME, make_row, make_state

RECORDED = RecordedCheckpoint(name="checkpoint_000002", iteration=3)
WHOLE = {"model.pt": 100, "meta.json": 5}


def listed(*indices, **files):
    return [CheckpointDir(name=f"checkpoint_{i:06d}", files=files or WHOLE) for i in indices]


def test_the_recorded_checkpoint_is_taken_as_ray_takes_it():
    choice = choose_checkpoint(RECORDED, listed(1, 2, 3), {})
    assert (choice.name, choice.iteration) == ("checkpoint_000002", 3)


def test_one_that_is_gone_is_repaired_to_the_newest_reported_one():
    choice = choose_checkpoint(
        RECORDED, listed(3, 4), {"checkpoint_000003": 4, "checkpoint_000004": 5}
    )
    assert (choice.name, choice.iteration) == ("checkpoint_000004", 5)
    assert "checkpoint_000002 is gone" in choice.reason


def test_one_that_was_never_reported_may_be_half_uploaded_and_is_not_taken():
    choice = choose_checkpoint(RECORDED, listed(1, 4), {"checkpoint_000001": 2})
    assert choice.name == "checkpoint_000001"


def test_one_that_lost_a_file_its_siblings_have_is_incomplete():
    found = [*listed(1), CheckpointDir(name=RECORDED.name, files={"meta.json": 5})]
    choice = choose_checkpoint(RECORDED, found, {"checkpoint_000001": 2, RECORDED.name: 3})
    assert choice.name == "checkpoint_000001"
    assert "is incomplete" in choice.reason


def test_one_whose_file_is_empty_where_the_siblings_is_not_is_incomplete():
    found = [*listed(1), CheckpointDir(name=RECORDED.name, files={"model.pt": 0, "meta.json": 5})]
    assert choose_checkpoint(RECORDED, found, {"checkpoint_000001": 2}).name == "checkpoint_000001"


def test_a_directory_marker_alone_is_no_content():
    choice = choose_checkpoint(RECORDED, [CheckpointDir(name=RECORDED.name, files={})], {})
    assert choice.name is None
    assert choice.lost


def test_a_newer_one_than_a_stale_state_names_is_taken_only_by_choice():
    reported = {RECORDED.name: 3, "checkpoint_000003": 4, "checkpoint_000004": 5}
    found = [*listed(2, 3), CheckpointDir(name="checkpoint_000004", files={"meta.json": 5})]
    assert choose_checkpoint(RECORDED, found, reported).name == RECORDED.name
    choice = choose_checkpoint(RECORDED, found, reported, prefer_newest=True)
    assert (choice.name, choice.iteration) == ("checkpoint_000003", 4)
    assert "newer than the state, which names checkpoint_000002" in choice.reason


def test_a_newer_one_that_nobody_reported_is_not_taken_even_by_choice():
    choice = choose_checkpoint(RECORDED, listed(2, 3), {RECORDED.name: 3}, prefer_newest=True)
    assert choice.name == RECORDED.name


def test_one_that_came_after_a_state_without_any_is_taken_by_choice():
    choice = choose_checkpoint(None, listed(0), {"checkpoint_000000": 1}, prefer_newest=True)
    assert (choice.name, choice.iteration) == ("checkpoint_000000", 1)
    assert "names no checkpoint" in choice.reason


def test_a_trial_without_any_recorded_checkpoint_starts_from_scratch():
    choice = choose_checkpoint(None, listed(1), {})
    assert (choice.name, choice.lost) == (None, False)


def choose_by_rows(*lines, there=("checkpoint_000000", "checkpoint_000002")):
    """Choose for a trial whose recorded checkpoint, the second, is gone."""
    store = MemoryStore()
    store.put(STATE_NAME, make_state([make_row("t", status="ERROR", checkpoint=True)]))
    for name in there:
        store.put(f"dir_t/{name}/model.pt", b"whole")
    store.put("dir_t/result.json", "\n".join(lines).encode())
    return read_checkpoint_choices(store, list(read_experiment(store).trials))["t"]


OF_THE_FIRST = '{"loss": 1.0, "checkpoint_dir_name": "checkpoint_000000", "training_iteration": 7}'


@pytest.mark.parametrize(
    "other",
    [
        "",
        "{",
        "[]",
        "null",
        '"checkpoint_dir_name"',
        '{"loss": NaN, "checkpoint_dir_name": null}',
        '{"checkpoint_dir_name": 7}',
        '{"checkpoint_dir_name": ["checkpoint_000002"]}',
        '{"checkpoint_dir_name": "../checkpoint_000002"}',
        '{"note": "\\"checkpoint_dir_name\\": \\"checkpoint_000002\\""}',
        '{"config": {"checkpoint_dir_name": "checkpoint_000002"}}',
        '{"checkpoint_dir_name": "checkpoint_000002", "x": ' + "[" * 100_000,
        '{"checkpoint_dir_name": "checkpoint_000002", "x": "' + "x" * 17_000_000 + '"}',
    ],
    ids=lambda text: text[:40],
)
def test_a_row_of_results_that_reports_no_checkpoint_harms_no_other(other):
    for lines in ([OF_THE_FIRST, other], [other, OF_THE_FIRST], [other, OF_THE_FIRST, other]):
        choice = choose_by_rows(*lines)
        assert (choice.name, choice.iteration) == ("checkpoint_000000", 7)


def test_a_row_of_results_may_hold_nan_and_be_reported_again():
    again = '{"checkpoint_dir_name": "checkpoint_000000", "training_iteration": 8.0, "loss": NaN}'
    assert choose_by_rows(OF_THE_FIRST, again).iteration == 8


def test_rows_that_report_only_what_is_gone_say_that_nothing_else_was_reported():
    """Ray's own rows name every checkpoint: a directory that none of them names may be half uploaded."""
    assert choose_by_rows('{"checkpoint_dir_name": "checkpoint_000005"}').lost
    assert choose_by_rows("{}").name == "checkpoint_000000"


def test_no_more_rows_are_decoded_than_report_a_checkpoint(monkeypatch):
    decoded = []
    monkeypatch.setattr(bounded_json, "check_values", lambda text, *_most: decoded.append(text))
    rows = ['{"loss": 1.0, "training_iteration": 1}', ""] * 1000
    assert choose_by_rows(*rows, OF_THE_FIRST, *rows).iteration == 7
    of_rows = [text for text in decoded if isinstance(text, bytes) and b'"loss"' in text]
    assert of_rows == [f"{OF_THE_FIRST}\n".encode()]
