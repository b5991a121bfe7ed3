"""What the task that draws samples asks before it begins."""

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.operators.continue_experiment import ContinueExperimentOperator
from tests.support.airflow.context import make_context
from tests.support.experiments.built import make_experiment, make_row


@pytest.mark.parametrize(
    ("name", "choice", "ignored"),
    [("train", "False", False), ("train", "True", True), ("old", False, True)],
)
def test_the_check_knows_whether_tuner_pkl_counts(tmp_path, launcher, name, choice, ignored):
    """By choice, or because it belongs to another run: the rows name another trainable."""
    rows = [make_row("t", trainable_name=name)]
    experiment = make_experiment(tmp_path / "left", rows, total_samples=3)
    launcher.refusal = InvalidInputError("no further")
    task = ContinueExperimentOperator(
        task_id="samples", experiment=str(experiment), trainable="a:b", ignore_tuner=choice
    )
    with pytest.raises(AirflowFailException, match="no further"):
        task.execute(make_context())
    (question,) = launcher.checked
    assert (question["trainable_name"], question["ignore_tuner"]) == (name, ignored)
