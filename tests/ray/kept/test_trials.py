"""What becomes of trials: behaviours that Ray's own restore tests pin, lived through us.

Which of Ray's tests each of these stands for is in docs/conformance.md.
"""

import shutil

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.flags import ResumeFlags
from tests.support.ray.compared import Case, ask_ray, compare, restore_ours


def test_a_finished_experiment_keeps_its_trials_and_is_not_written_to(
    hosts, failed_experiments, tmp_path
):
    case = Case("finished", "errored", statuses={"fails": "TERMINATED"})
    original = failed_experiments[case.kind]
    (before,) = original.glob("experiment_state-*")
    theirs = ask_ray(hosts, case, original, tmp_path)
    ours = restore_ours(hosts, case, original, tmp_path)
    compare(ours.described, theirs, case)
    assert [trial["status"] for trial in theirs["trials"]] == ["TERMINATED", "TERMINATED"]
    assert ours.summary is None
    assert ours.after == ours.before
    assert theirs["newest"] != before.name  # Ray writes one more state file


def test_an_experiment_that_never_started_is_started_in_its_place(hosts, copied):
    """Ray alone would run one trial with an empty config."""
    experiment = copied("kept")
    for path in experiment.iterdir():
        if path.name != layout.TUNER_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    summary = hosts.restore_by_us(
        str(experiment), "tests.trainables:counting", flags=ResumeFlags(),
        param_space="tests.trainables:fitting_param_space", env={"TUNE_TEST_HEALED": "1"},
    )  # fmt: skip
    assert [(change.action, change.iteration_after) for change in summary.changes] == [("draw", 6)]
    (trial,) = hosts.ray.call("describe", str(experiment))["trials"]
    assert trial["status"] == "TERMINATED"
    assert [row["training_iteration"] for row in trial["rows"]] == [1, 2, 3, 4, 5, 6]
