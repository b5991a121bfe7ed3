"""What the commands print for machines."""

import json
import math

import pytest

from airflow_tune_restore.cli import output
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
