"""What the commands print for machines."""

import json
import math

import pytest
from ray import cloudpickle
from ray.tune import TuneConfig

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import night


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_strings(tmp_path, capsys, score):
    last = {"training_iteration": 3, "score": score}
    rows = [make_row("bad", status="ERROR"), make_row("good", last_result=last)]
    store = open_store(make_experiment(tmp_path / "exp", rows).as_posix())
    summary = night(store, "r1", result="finished")
    output.print_summary(summary, experiment=store.uri, as_json=True)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    after = {trial["trial_id"]: trial["metric_after"] for trial in printed["trials"]}
    assert after == {"bad": None, "good": str(score)}


def test_a_text_with_colons_is_printed_as_it_is(capsys):
    output.print_error(InvalidInputError("mymod:train: it is not :fire:"))
    assert capsys.readouterr().err == "error: mymod:train: it is not :fire:\n"


def test_a_nested_metric_is_shown_by_rays_flat_name(tmp_path):
    last = {"training_iteration": 3, "val": {"loss": 0.5}}
    rows = [make_row("bad", status="ERROR", last_result=last)]
    directory = make_experiment(tmp_path / "exp", rows)
    tuner = {"_tune_config": TuneConfig(metric="val/loss", mode="min")}
    (directory / "tuner.pkl").write_bytes(cloudpickle.dumps(tuner))
    summary = night(open_store(directory.as_posix()), "r1", result="finished")
    assert (summary.metric, summary.changes[0].metric_before) == ("val/loss", 0.5)
