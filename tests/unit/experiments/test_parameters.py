"""The hyper-parameters in which trials differ: found, shortened and bounded, whatever a config holds."""

import json
import math

import pytest
from ray import cloudpickle

from airflow_tune_restore.experiments.parameters import (
    MAX_PARAMETERS,
    VALUE_LENGTH,
    find_varying,
    read_parameters,
)
from airflow_tune_restore.experiments.state import (
    KEEP_UNTERMINATED,
    Keep,
    parse_pieces,
    parse_state,
)
from tests.support.experiments.built import make_row, make_state


def varying(*configs, **fields):
    """Return what differs, by trial id `t0`, `t1`, …; a config that is a text is the row's own."""
    rows = [
        make_row(f"t{number}", config=config, **fields) for number, config in enumerate(configs)
    ]
    return find_varying(parse_state(make_state(rows)).trials)


def test_values_that_are_the_same_everywhere_are_left_out_and_names_are_rays():
    found = varying(
        {"lr": 0.1, "epochs": 3, "optimizer": {"name": "adam", "momentum": 0.9}},
        {"lr": 0.001, "epochs": 3, "optimizer": {"name": "sgd", "momentum": 0.9}},
    )
    assert found.by_trial == {
        "t0": {"lr": "0.1", "optimizer/name": "adam"},
        "t1": {"lr": "0.001", "optimizer/name": "sgd"},
    }
    assert found.more == 0


def test_nothing_differs_in_one_trial_or_in_equal_ones():
    assert varying({"lr": 0.1}).by_trial == {}
    assert varying({"lr": 0.1}, {"lr": 0.1}).by_trial == {}


def test_a_parameter_that_only_some_trials_have_differs():
    found = varying({"lr": 1}, {"lr": 1, "decay": 2})
    assert found.by_trial == {"t0": {}, "t1": {"decay": "2"}}


def test_odd_values_are_shown():
    found = varying(
        {"a": math.nan, "b": None, "c": True, "d": [1, [2]], "e": 1e30, "f": "\x1b[31mred\n"},
        {"a": math.inf, "b": 0, "c": False, "d": [1, [3]], "e": 1, "f": ""},
    )
    assert found.by_trial["t0"] == {
        "a": "nan", "b": "None", "c": "True", "d": "[1, [2]]", "e": "1e+30", "f": "red ",
    }  # fmt: skip
    assert found.by_trial["t1"]["a"] == "inf"


def test_classes_and_functions_are_named_and_never_unpickled():
    def pickled(value):
        return {"_type": "CLOUDPICKLE_FALLBACK", "value": cloudpickle.dumps(value).hex()}

    found = varying(
        {"layer": pickled(json.JSONDecoder), "x": pickled(lambda: 1)},
        {"layer": pickled(json.JSONEncoder), "x": pickled(lambda: 2)},
    )
    assert found.by_trial == {"t0": {"layer": "JSONDecoder"}, "t1": {"layer": "JSONEncoder"}}


def test_a_handful_is_kept_and_the_others_are_counted_those_that_were_searched_first():
    configs = [{**{f"c{i}": n for i in range(20)}, "lr": n} for n in (1, 2)]
    found = varying(*configs, evaluated_params={"lr": 7})
    names = list(found.by_trial["t0"])
    assert (names[0], len(names), found.more) == ("lr", MAX_PARAMETERS, 21 - MAX_PARAMETERS)
    assert found.by_trial["t0"]["lr"] == "1"  # the config's, which PBT changes


def test_long_values_are_cut_in_their_middle_and_still_compared_as_a_whole():
    paths = [f"/data/{'deep/' * 10}fold{n}" for n in (1, 2)]
    found = varying(*({"path": path} for path in paths))
    shown = [values["path"] for values in found.by_trial.values()]
    assert [len(text) for text in shown] == [VALUE_LENGTH] * 2
    assert [text[-5:] for text in shown] == ["fold1", "fold2"]


@pytest.mark.parametrize(
    "config",
    [
        {f"k{n}": {} for n in range(100_000)},
        {"k" * 1_000_000: 1},
        {"x": "v" * 1_000_000},
        {"x": list(range(300_000))},
        None,
        [1, 2],
        "text",
    ],
    ids=["many", "long-name", "long-value", "list", "null", "a-list", "a-text"],
)
def test_the_work_and_the_texts_are_bounded(config):
    (trial, other) = parse_state(
        make_state([make_row("a", config=config), make_row("b", config={"lr": 1})])
    ).trials
    found = read_parameters(trial.row)
    assert len(found) <= 32
    assert all(len(name) <= 40 and len(text) <= 100 for name, text in found.items())
    assert "lr" in read_parameters(other.row)
    find_varying([trial, other])


def test_a_config_that_nests_deeply_is_shown_as_far_as_it_goes():
    config = {"lr": 1}
    for _ in range(90):
        config = {"x": config}
    (name,) = read_parameters(parse_state(make_state([make_row("a", config=config)])).trials[0].row)
    assert name.startswith("x/x/x")


def test_rows_that_are_not_kept_leave_their_parameters():
    rows = [
        make_row("done", config={"lr": 1}, last_result={"done": True, "training_iteration": 2}),
        make_row("bad", config={"lr": 2}, status="ERROR"),
    ]
    body = make_state(rows)
    kept = parse_pieces([body], Keep(terminated_rows=False, parameters=True)).trials
    assert [trial.row is None for trial in kept] == [True, False]
    assert find_varying(kept).by_trial == {"done": {"lr": "1"}, "bad": {"lr": "2"}}
    dropped = parse_pieces([body], KEEP_UNTERMINATED).trials
    assert find_varying(dropped).by_trial == {}
