"""State files: real ones, odd ones, broken ones."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.experiments import state as state_module
from airflow_tune_restore.experiments.raw_row import MalformedStateError, checkpoint_fields
from airflow_tune_restore.experiments.state import (
    KEEP_UNTERMINATED,
    encode_state,
    parse_pieces,
    parse_state,
)
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.checkpoints import RecordedCheckpoint
from tests.support import GOLDEN
from tests.support.experiments.built import KILLED, config_of, make_row, make_state

GOLDEN_FILES = sorted(KILLED.parent.parent.glob("ray-*/killed/experiment_state-*.json"))


@pytest.fixture(params=GOLDEN_FILES, ids=lambda path: path.parent.parent.name)
def golden(request):
    return request.param.read_bytes()


def test_a_real_state_is_read_field_by_field(golden):
    trials = {config_of(trial)["role"]: trial for trial in parse_state(golden).trials}
    finishes, fails, hangs = trials["finishes"], trials["fails"], trials["hangs"]
    assert finishes.status is TrialStatus.TERMINATED
    assert (finishes.iteration, finishes.last_result["score"]) == (4, 8)
    assert finishes.recorded_checkpoint(checkpoint_fields()) == RecordedCheckpoint(
        name="checkpoint_000003", iteration=4
    )
    assert fails.status is TrialStatus.ERROR
    assert fails.recorded_checkpoint(checkpoint_fields()) == RecordedCheckpoint(
        name="checkpoint_000001", iteration=2
    )
    assert hangs.status is TrialStatus.RUNNING
    assert hangs.resources == {"CPU": 1.0}
    waits = trials["waits"]
    assert waits.status is TrialStatus.PENDING
    assert waits.last_result_time == -math.inf
    assert waits.recorded_checkpoint(checkpoint_fields()) is None


def test_a_state_put_together_again_is_byte_for_byte_the_same(golden):
    state = parse_state(golden)
    assert encode_state(state.rows.values(), state.runner, state.stats) == golden


def test_numbers_json_does_not_have_are_read():
    row = make_row(last_result={"training_iteration": 3, "loss": math.nan, "best": -math.inf})
    body = make_state([row], _earliest_stopping_actor=math.inf)
    trial = parse_state(body).trials[0]
    assert trial.iteration == 3
    assert math.isnan(trial.last_result["loss"])


def test_a_frame_in_another_order_is_read_too():
    document = json.loads(make_state([make_row("a"), make_row("b")]))
    swapped = {"stats": document["stats"], "runner_data": {}, "trial_data": document["trial_data"]}
    assert [t.trial_id for t in parse_state(json.dumps(swapped, indent=1).encode()).trials] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("layout", [{"separators": (",", ":")}, {"indent": 1}, {"indent": "\t"}])
def test_a_state_that_is_laid_out_in_another_way_has_the_same_rows(layout):
    rows = [make_row("a", status="ERROR"), make_row("b")]
    body = make_state(rows, note='"trial_data": [["", ""]], ', _earliest_stopping_actor=math.inf)
    whole = parse_state(body)
    for pieces in ([json.dumps(json.loads(body), **layout).encode()], cut_up(body, 7)):
        state = parse_pieces(pieces)
        assert (state.runner, state.stats) == (whole.runner, whole.stats)
        assert [bytes(row.trial) for row in state.rows.values()] == [
            json.dumps(row[0]).encode() for row in rows
        ]
        assert encode_state(state.rows.values(), state.runner, state.stats) == body


def cut_up(body, size):
    return [body[start : start + size] for start in range(0, len(body), size)]


@given(size=st.integers(1, 40_000))
def test_however_it_comes_in_a_state_is_the_same(size):
    rows = [make_row(trial_id) for trial_id in ("a", "b", "c")]
    # strings behind the rows look like the space between two rows
    body = make_state(rows, odd=[["x"], ["y"]])
    whole, state = parse_state(body), parse_pieces(cut_up(body, size))
    assert encode_state(state.rows.values(), state.runner, state.stats) == body
    assert state.runner == whole.runner
    assert [msgspec.structs.replace(t, row=None) for t in state.trials] == [
        msgspec.structs.replace(t, row=None) for t in whole.trials
    ]


def test_a_large_state_is_split_as_it_comes_in():
    body = make_state([make_row(f"{number:04}") for number in range(400)])
    assert len(body) > 1_000_000
    state = parse_pieces([body])
    assert encode_state(state.rows.values(), state.runner, state.stats) == body


def test_rows_of_trials_that_came_to_their_end_are_kept_for_a_commit_only():
    done = {"last_result": {"training_iteration": 3, "done": True}}
    rows = [
        make_row("ended", **done),
        make_row("stopped"),
        make_row("failed", status="ERROR", **done),
    ]
    body = make_state(rows)
    assert list(parse_state(body).rows) == ["ended", "stopped", "failed"]
    state = parse_pieces([body], KEEP_UNTERMINATED)
    assert list(state.rows) == ["stopped", "failed"]
    ended, stopped, failed = state.trials
    assert (ended.trial_id, ended.iteration, ended.terminated_by_itself) == ("ended", 3, True)
    with pytest.raises(LookupError, match="ended was not kept"):
        _ = ended.resources
    assert stopped.resources == parse_state(body).trials[1].resources
    assert not stopped.terminated_by_itself
    assert not failed.terminated_by_itself


@given(cut=st.floats(0, 0.999))
def test_a_truncated_state_is_refused(cut):
    body = make_state([make_row("a"), make_row("b")])
    with pytest.raises(MalformedStateError):
        parse_state(body[: int(len(body) * cut)])
    with pytest.raises(MalformedStateError):
        parse_pieces(cut_up(body[: int(len(body) * cut)], 1000), KEEP_UNTERMINATED)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"trial_data": 5}',
        b'{"trial_data": [["a"]]}',
        b'{"trial_data": [["{}", "{}"],], "runner_data": {}}',
        b'{"trial_data": [["{}", "{}"] ["{}", "{}"]], "runner_data": {}}',
        b'{"trial_data": [["{}", "{}", "{}"]], "runner_data": {}}',
        b'{"runner_data": {"trial_data": []}, "trial_data": [["{}", "{}"]]}',
        b'[{"trial_data": []}]',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_something_else_is_refused(body):
    with pytest.raises(MalformedStateError):
        parse_state(body)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("value", [None, 7, {}, ["a"]])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_is_not_a_pair_of_texts_spoils_the_file_wherever_it_is(place, value, half):
    """Ray can read none of its rows: it takes both for texts."""
    rows = [make_row(trial_id) for trial_id in ("a", "b", "c")]
    rows[place][half] = value
    for pieces in ([make_state(rows)], cut_up(make_state(rows), 1000)):
        with pytest.raises(MalformedStateError, match="pair of texts"):
            parse_pieces(pieces)


def test_a_state_of_too_many_small_rows_is_refused(monkeypatch):
    monkeypatch.setattr(state_module, "MAX_SMALL_ROWS", 2)
    small = ['{"trial_id": "%d", "status": "PENDING", "trainable_name": "x"}', "{}"]
    rows = [[small[0] % number, small[1]] for number in range(3)]
    assert len(parse_state(make_state([*rows[:2], make_row("a")])).trials) == 3
    with pytest.raises(MalformedStateError, match="more than 2 trials of less than"):
        parse_state(make_state(rows))


def test_no_row_of_rays_is_small():
    """However many trials wait in a state that may be read, it is read."""
    states = list(GOLDEN.glob("*/*/experiment_state-*.json"))
    assert states
    for state in states:
        for row in json.loads(state.read_bytes())["trial_data"]:
            assert sum(map(len, row)) >= state_module.SMALL_ROW_BYTES, state


@pytest.mark.parametrize("size", ["runner", "rows"])
def test_what_is_around_the_rows_may_not_be_much(size):
    body = make_state([make_row("a")], odd=[0] * (200_000 if size == "runner" else 20_000))
    if size == "runner":
        with pytest.raises(MalformedStateError, match="around its rows: it may hold"):
            parse_state(body)
    else:
        assert parse_state(body).runner["odd"] == [0] * 20_000


def test_a_checkpoint_path_that_leads_outside_is_not_a_checkpoint():
    row = make_row("a", checkpoint=True)
    run = json.loads(row[1])
    hexed = run["checkpoint_manager"]["value"]
    real = b"checkpoint_000001"
    run["checkpoint_manager"]["value"] = hexed.replace(real.hex(), b"checkpoint/../../".hex())
    trial = parse_state(make_state([[row[0], json.dumps(run)]])).trials[0]
    with pytest.raises(MalformedStateError, match="leads outside"):
        _ = trial.recorded_checkpoint(checkpoint_fields())
