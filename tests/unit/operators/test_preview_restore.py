"""The preview task: what a person is shown, and that nothing is written for it."""

import json

import pytest
from markdown_it import MarkdownIt

from airflow_tune_restore.experiments.read import read_base
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.hooks.xcom_size import MAX_XCOM_BYTES, unpack
from airflow_tune_restore.operators.approval import ApprovedXCom, approved_to_xcom
from airflow_tune_restore.operators.approval_page import MAX_PAGE_BYTES, describe_hours
from airflow_tune_restore.operators.preview_restore import PreviewRestoreOperator
from airflow_tune_restore.protocol.check import CheckAnswer, Problem
from airflow_tune_restore.restore.estimate import Hours
from airflow_tune_restore.restore.history import FailedAttempt, History
from airflow_tune_restore.restore.ledger import Ledger, write_ledger
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.context import make_context
from tests.support.airflow.states import FAILED, RETRIED, SKIPPED, SUCCESS, run
from tests.support.experiments.built import make_experiment, make_row

HOSTILE = {
    "link": "[c](https://e.example)",
    "html": "<script>a()</script>",
    "`|<b>": "` | ![i](//e.example/i)",
}


def preview(*experiments, **arguments):
    arguments = {"resume_errored": True, "stale_after": 0, "launcher": "ray", **arguments}
    return PreviewRestoreOperator(
        task_id="preview", experiments=[str(each) for each in experiments], **arguments
    )


def files(directory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_it_shows_what_will_run_and_writes_nothing(tmp_path):
    row = {"training_iteration": 4, "time_total_s": 4 * 3600.0}
    stop = {"training_iteration": 10}
    made = make_experiment(
        tmp_path / "exp",
        [
            make_row("a1", status="ERROR", last_result=row, stopping_criterion=stop),
            make_row("a2", last_result={"training_iteration": 10, "done": True}),
        ],
        total_samples=4,
    )
    before = files(tmp_path)
    state, returned, pushed = run(preview(made))
    assert state == SUCCESS
    assert files(tmp_path) == before
    (item,) = returned
    assert item["experiment"] == str(made)
    assert len(item["sha256"]) == 64
    assert pushed["subject"] == (
        "Restore 1 trial and 2 new samples of 1 experiment: 0 GPU-hours and 30 CPU-hours"
    )
    body = pushed["body"]
    assert "| `a1` | - | ERROR | 0 → 10 | `CPU 1` | 0 | 10 |" in body
    assert "| 2 new samples | - | not drawn yet | 0 → 10 | `CPU 1` | 0 | 20 |" in body
    assert "1 of 2 trials to run, in a run of its own. Drafted from `experiment_state-" in body


def test_it_shows_why_a_trial_failed_in_earlier_restores(errored):
    failed = FailedAttempt(
        restore_id="r",
        attempt=1,
        cause="trainable",
        type="ValueError",
        message="lr 0.3 diverged",
        place="project/training.py:16 in train",
        iteration=2,
    )
    trial_id = read_base(open_store(str(errored))).state.trials[0].trial_id
    ledger = Ledger(trials={trial_id: History(failures=(failed,))})
    write_ledger(open_store(str(errored)), ledger)
    _, _, pushed = run(preview(errored))
    why = "`ValueError: lr 0.3 diverged, at project/training.py:16 in train`"
    assert f"| ERROR; 1 failed restore attempt, the last by {why} |" in pushed["body"]


def test_it_shows_what_is_not_restored_and_why(errored, tmp_path):
    alive = make_experiment(tmp_path / "alive", [make_row("b1", status="RUNNING")])
    nowhere = tmp_path / "nowhere"
    _, returned, pushed = run(preview(errored, alive, nowhere, stale_after=3600))
    assert [item["experiment"] for item in returned] == [str(errored)]
    refused, running = (
        pushed["body"].index(f"* `{each}` — ") for each in (nowhere, alive)
    )  # fmt: skip
    assert refused < running  # what needs a person comes first
    assert "— left alone: `it is running" in pushed["body"]
    assert "### Not restored: 2 experiments" in pushed["body"]


def test_what_storage_holds_is_shown_and_not_obeyed(tmp_path):
    row = make_row("a1", status="ERROR", config=HOSTILE)
    made = make_experiment(tmp_path / "exp", [row, make_row("a2", status="ERROR", config={"x": 1})])
    _, _, pushed = run(preview(made))
    parsed = MarkdownIt("commonmark").enable("table").parse(pushed["body"])
    kinds = {child.type for token in parsed for child in token.children or ()}
    assert kinds == {"text", "code_inline", "softbreak"}
    for text in ("[c](https://e.example)", "<script>a()</script>", "'¦<b>=' ¦ ![i](//e.example/i)"):
        assert text in pushed["body"]
    rows = [token for token in parsed if token.type == "tr_open"]
    cells = [token for token in parsed if token.type in ("td_open", "th_open")]
    assert len(cells) == 7 * len(rows)


def test_with_nothing_to_do_it_is_skipped_and_nobody_is_asked(tmp_path):
    done = make_experiment(tmp_path / "done", [make_row("b1")])
    state, _, pushed = run(preview(done))
    assert state == SKIPPED
    assert pushed["outcomes"][0]["outcome"] == "left_alone"
    assert "body" not in pushed


def test_if_only_a_person_can_help_it_fails_with_the_reasons(tmp_path):
    operator = preview(tmp_path / "nowhere")
    with pytest.raises(Exception, match=r"neither a tuner\.pkl nor an experiment state"):
        operator.execute(make_context())
    state, _, pushed = run(operator)
    assert state == FAILED
    assert pushed["outcomes"][0]["outcome"] == "refused"


def test_a_misfit_alone_is_nothing_to_approve(errored, launcher):
    launcher.answer = CheckAnswer(experiment="", problem=Problem.MISFIT, message="other")
    state, _, pushed = run(preview(errored, trainable="m:train", launcher="local"))
    assert state == SKIPPED
    assert pushed["outcomes"][0]["outcome"] == "misfit"


def test_an_error_that_may_pass_is_retried(errored, monkeypatch):
    from airflow_tune_restore.exceptions import StorageError
    from airflow_tune_restore.operators import prepare_restores

    def fail(*_):
        raise StorageError("The store is out of reach.")

    monkeypatch.setattr(prepare_restores, "prepare_restore", fail)
    assert run(preview(errored))[0] == RETRIED
    assert run(preview(errored), make_context(try_number=2))[0] == FAILED


def test_an_experiment_without_room_waits(errored, tmp_path):
    other = make_experiment(tmp_path / "other", [make_row("b1", status="ERROR")])
    _, returned, pushed = run(preview(errored, other, max_trials=2))
    assert len(returned) < 2 or "1 more wait for the next DAG run" in pushed["body"]
    assert sum(item["waiting"] for item in pushed["outcomes"]) == 1


def test_a_coupled_run_and_a_plan_that_only_ends_trials_are_named(tmp_path):
    made = make_experiment(
        tmp_path / "e", [make_row("a", status="RUNNING"), make_row("b", status="ERROR")]
    )
    _, _, pushed = run(preview(made, strategy="whole_experiment"))
    assert "All 2 trials to run, in one run of the whole experiment" in pushed["body"]
    _, _, pushed = run(preview(made, resume_errored=False, resume_unfinished=False))
    assert "No recorded trial runs. 1 become TERMINATED without a run" in pushed["body"]
    assert pushed["subject"].startswith("Restore 0 trials of 1 experiment: 0 GPU-hours")


def test_the_page_is_bounded(tmp_path):
    rows = [
        make_row(f"t{n:04}", status="ERROR", config={"p": f"{n}-" + "x" * 30}) for n in range(300)
    ]
    made = [make_experiment(tmp_path / f"exp{n}{'y' * 100}", rows) for n in range(12)]
    _, returned, pushed = run(preview(*made, max_trials=5000))
    body = pushed["body"]
    assert len(body.encode()) <= MAX_PAGE_BYTES
    assert body.startswith("The hours are an estimate")
    assert f" of {len(returned)} experiments" in pushed["subject"]
    assert "more trials. The log of the preview task has all of them." in body


def test_ten_thousand_experiments_fit():
    items = [
        ApprovedXCom(
            experiment=f"s3://conn@bucket/team_{n % 40}/train_2026-01-{n % 28 + 1:02}_{n:05}",
            state=f"experiment_state-2026-01-{n % 28 + 1:02}_10-{n % 60:02}-00.json",
            sha256=f"{hash((n, 1)) & (2**64 - 1):016x}" * 4,
            work=f"{hash((n, 2)) & (2**64 - 1):016x}",
        )
        for n in range(10_000)
    ]  # fmt: skip
    xcom = approved_to_xcom(items)
    assert len(json.dumps(xcom)) < MAX_XCOM_BYTES
    again = [ApprovedXCom.parse(item) for item in unpack(xcom)]
    assert [item.experiment for item in again] == [item.experiment for item in items]
    assert all(i.sha256.startswith(a.sha256) for i, a in zip(items, again, strict=True))
    assert {len(item.sha256) for item in again} == {16}
    assert approved_to_xcom(items[:3]) == [item.to_short_xcom() for item in items[:3]]


def test_a_packed_list_keeps_whole_digests_while_they_fit(monkeypatch):
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", 3000)
    items = [ApprovedXCom(experiment=f"/e{n:03}", sha256="ab" * 32) for n in range(100)]
    xcom = approved_to_xcom(items)
    assert "packed" in xcom
    assert {item["sha256"] for item in unpack(xcom)} == {"ab" * 32}


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (Hours(), "0 GPU-hours and 0 CPU-hours"),
        (Hours(gpu=0.001, cpu=0.5), "less than 0.01 GPU-hours and 0.5 CPU-hours"),
        (Hours(gpu=12.04, cpu=1234.5), "12 GPU-hours and 1,234.5 CPU-hours"),
        (Hours(cpu=3, unknown=1), "at least 0 GPU-hours and 3 CPU-hours"),
        (Hours(unknown=2), "an unknown number of GPU- and CPU-hours"),
    ],
)
def test_hours_in_words(hours, words):
    assert describe_hours(hours) == words


@pytest.mark.parametrize(
    ("where", "way"),
    [
        ("local", "2 of 3 trials to run, all in a driver that they share"),
        ("kubernetes", "2 of 3 trials to run, each in a run of its own"),
    ],
)
def test_it_says_that_trials_share_a_driver_but_never_a_pod(errored, where, way):
    _, _, pushed = run(preview(errored, strategy="shared_driver", launcher=where))
    assert way in pushed["body"]
