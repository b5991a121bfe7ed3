"""The newest complete checkpoint, by the evidence there is."""

from airflow_tune_restore.experiments.checkpoints import (
    CheckpointDir,
    RecordedCheckpoint,
    choose_checkpoint,
)

RECORDED = RecordedCheckpoint(name="checkpoint_000002", iteration=3)
WHOLE = {"model.pt": 100, "meta.json": 5}


def listed(*indices, **files):
    return [CheckpointDir(name=f"checkpoint_{i:06d}", files=files or WHOLE) for i in indices]


def test_the_recorded_checkpoint_is_taken_as_ray_takes_it():
    choice = choose_checkpoint(RECORDED, listed(1, 2, 3), {})
    assert (choice.name, choice.iteration, choice.repaired) == ("checkpoint_000002", 3, False)


def test_one_that_is_gone_is_repaired_to_the_newest_reported_one():
    choice = choose_checkpoint(
        RECORDED, listed(3, 4), {"checkpoint_000003": 4, "checkpoint_000004": 5}
    )
    assert (choice.name, choice.iteration, choice.repaired) == ("checkpoint_000004", 5, True)
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
    assert (choice.name, choice.iteration, choice.repaired) == ("checkpoint_000003", 4, True)
    assert "newer than the state, which names checkpoint_000002" in choice.reason


def test_a_newer_one_that_nobody_reported_is_not_taken_even_by_choice():
    choice = choose_checkpoint(RECORDED, listed(2, 3), {RECORDED.name: 3}, prefer_newest=True)
    assert choice.name == RECORDED.name


def test_one_that_came_after_a_state_without_any_is_taken_by_choice():
    choice = choose_checkpoint(None, listed(0), {"checkpoint_000000": 1}, prefer_newest=True)
    assert (choice.name, choice.iteration) == ("checkpoint_000000", 1)
    assert "names none" in choice.reason


def test_a_trial_without_any_recorded_checkpoint_starts_from_scratch():
    choice = choose_checkpoint(None, listed(1), {})
    assert (choice.name, choice.lost) == (None, False)
