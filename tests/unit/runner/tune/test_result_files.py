"""Which rows of result.json and progress.csv go before a trial is resumed."""

import json
import math
from dataclasses import replace

import pytest

from airflow_tune_restore.protocol import layout, lease
from airflow_tune_restore.protocol.numbers import read_iteration
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner.tune.result_files import Start, prepare_results
from airflow_tune_restore.storage.fs import open_store
from tests.support.records import Attempt, leave_outcome

TRIAL = "train_0"


def request(attempt: int = 1, *, trim: bool = False, restore_id: str = "r") -> RunnerRequest:
    return RunnerRequest(
        experiment="", restore_id=restore_id, trial_id="t", attempt=attempt, trainable="",
        trainable_name="", action="resume", trim_results=trim,
    )  # fmt: skip


def at(iteration: float | None, checkpoint: str = "checkpoint_000001") -> Start:
    """Return what a trial continues from: a checkpoint that no row names, unless the test writes one."""
    return Start(checkpoint, iteration)


class Files:
    def __init__(self, directory) -> None:
        self.store = open_store(directory.as_posix())

    def write(self, *iterations: int) -> None:
        rows = [{"training_iteration": i, "note": 'a "quoted"\nline'} for i in iterations]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.store.put(f"{TRIAL}/result.json", text.encode())
        table = "".join(f'{i},"a ""quoted""\nline"\r\n' for i in iterations)
        self.store.put(f"{TRIAL}/progress.csv", f"training_iteration,note\r\n{table}".encode())

    def append(self, text: bytes, name: str = "result.json") -> None:
        key = f"{TRIAL}/{name}"
        self.store.put(key, self.store.get(key) + text)

    def read(self) -> tuple[list[int], list[int]]:
        lines = self.store.get(f"{TRIAL}/result.json").decode().splitlines()
        table = self.store.get(f"{TRIAL}/progress.csv").decode().split("\r\n")[1:-1]
        rows = [json.loads(line)["training_iteration"] for line in lines]
        return rows, [int(line.partition(",")[0]) for line in table]


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def test_rows_from_before_the_restore_are_left_to_ray(files):
    files.write(1, 2, 3)
    prepare_results(files.store, request(), TRIAL, at(2))
    assert files.read() == ([1, 2, 3], [1, 2, 3])


def test_rows_an_earlier_attempt_wrote_past_the_checkpoint_go(files):
    files.write(1, 2, 3)
    prepare_results(files.store, request(), TRIAL, at(2))
    files.write(1, 2, 3, 3, 4, 5)
    prepare_results(files.store, request(2), TRIAL, at(4))
    assert files.read() == ([1, 2, 3, 3, 4], [1, 2, 3, 3, 4])


@pytest.mark.parametrize("ended", [None, "interrupted", "failed"])
def test_rows_of_a_restore_that_died_go_too(files, ended):
    files.write(1, 2, 3)
    first = lease.acquire(files.store, restore_id="r", holder="the first night")
    prepare_results(files.store, request(), TRIAL, at(2))
    files.store.put(layout.request_key("r", "t", 1), b"{}")
    if ended is not None:
        leave_outcome(files.store, Attempt("r", "t"), ended)
    files.write(1, 2, 3, 3, 4, 5)
    lease.release(files.store, first)
    for night in ("r2", "r3"):  # the second died before it ran the trial
        lease.release(files.store, lease.acquire(files.store, restore_id=night, holder=night))
    prepare_results(files.store, request(restore_id="r3"), TRIAL, at(4))
    rows = [1, 2, 3, 3, 4, 5] if ended == "failed" else [1, 2, 3, 3, 4]
    assert files.read() == (rows, rows)


def next_night(files) -> None:
    """End the restore `r`, whose attempt died, and let `r2` take the lease."""
    files.store.put(layout.request_key("r", "t", 1), b"{}")
    for night in ("r", "r2"):
        lease.release(files.store, lease.acquire(files.store, restore_id=night, holder=night))


def test_rows_of_a_restore_that_had_trimmed_and_died_go_too(files):
    files.write(1, 2, 3)
    prepare_results(files.store, request(trim=True), TRIAL, at(2))
    files.write(1, 2, 3, 4, 5)
    next_night(files)
    prepare_results(files.store, request(restore_id="r2"), TRIAL, at(2))
    assert files.read() == ([1, 2], [1, 2])


def test_a_trial_that_starts_over_after_a_restore_that_died_owns_all_its_rows(files):
    files.write(1, 2, 3)
    prepare_results(files.store, request(), TRIAL, at(2))
    next_night(files)
    prepare_results(files.store, request(restore_id="r2"), TRIAL, None)
    files.write(1, 2, 3)
    prepare_results(files.store, request(2, restore_id="r2"), TRIAL, at(2))
    assert files.read() == ([1, 2], [1, 2])


def test_trimming_drops_all_rows_past_the_checkpoint_and_keeps_a_copy_of_the_first(files):
    files.write(1, 2, 3)
    original = files.store.get(f"{TRIAL}/result.json")
    prepare_results(files.store, request(trim=True), TRIAL, at(2))
    assert files.read() == ([1, 2], [1, 2])
    files.write(1, 2, 3, 4)
    prepare_results(files.store, request(2, trim=True), TRIAL, at(3))
    assert files.read() == ([1, 2, 3], [1, 2, 3])
    assert files.store.get(layout.results_backup_key("r", "t")) == original


def test_a_row_that_was_cut_off_goes(files):
    files.write(1, 2)
    files.append(b'{"training_iteration": 3, "sc')
    files.append(b'3,"a', "progress.csv")
    prepare_results(files.store, request(), TRIAL, at(2))
    assert files.read() == ([1, 2], [1, 2])


def test_a_row_may_hold_a_field_that_is_longer_than_csv_takes_by_itself(files):
    files.write(1, 2)
    note = b"x" * 200_000
    files.append(b'{"training_iteration": 3, "note": "%s"}\n' % note)
    files.append(b"3,%s\r\n" % note, "progress.csv")
    prepare_results(files.store, request(trim=True), TRIAL, at(2))
    assert files.read() == ([1, 2], [1, 2])


def test_all_rows_of_a_trial_that_is_new_are_our_own(files):
    prepare_results(files.store, request(), TRIAL, None)
    files.write(1, 2, 3)
    prepare_results(files.store, request(2), TRIAL, at(2))
    assert files.read() == ([1, 2], [1, 2])


def test_rows_that_starting_from_scratch_overwrites_are_kept_as_a_copy(files):
    files.write(1, 2, 3)
    original = files.store.get(f"{TRIAL}/result.json")
    prepare_results(files.store, request(), TRIAL, None)
    files.write(1, 2)  # Ray begins the file anew
    prepare_results(files.store, request(2), TRIAL, at(1))
    assert files.read() == ([1], [1])
    assert files.store.get(layout.results_backup_key("r", "t")) == original


def test_files_without_iterations_are_left_alone(files):
    files.store.put(f"{TRIAL}/progress.csv", b"a,b\r\n1,2\r\n")
    prepare_results(files.store, request(trim=True), TRIAL, at(0))
    assert files.store.get(f"{TRIAL}/progress.csv") == b"a,b\r\n1,2\r\n"


def write_rows(files, iterations, checkpoints) -> None:
    rows = [
        {"training_iteration": i, "checkpoint_dir_name": name, "n": n}
        for n, (i, name) in enumerate(zip(iterations, checkpoints, strict=True))
    ]
    files.store.put(f"{TRIAL}/result.json", "".join(json.dumps(r) + "\n" for r in rows).encode())
    table = "".join(
        f"{r['training_iteration']},{r['checkpoint_dir_name'] or ''},{r['n']}\r\n" for r in rows
    )
    header = "training_iteration,checkpoint_dir_name,n\r\n"
    files.store.put(f"{TRIAL}/progress.csv", f"{header}{table}".encode())


def kept_rows(files) -> tuple[list[int], list[int]]:
    lines = files.store.get(f"{TRIAL}/result.json").decode().splitlines()
    table = files.store.get(f"{TRIAL}/progress.csv").decode().split("\r\n")[1:-1]
    return [json.loads(line)["n"] for line in lines], [int(row.split(",")[-1]) for row in table]


@pytest.mark.parametrize(
    "iterations",
    [
        [0.5, 1.5, 2.5, 3.5],
        ["1", "2", "3", "4"],
        [True, True, True, True],
        [None, None, None, None],
        [math.nan, math.nan, math.inf, -math.inf],
        [1, 2, 1, 2],  # an epoch that begins anew
        [4, 3, 2, 1],
    ],
)
def test_a_trainable_may_count_its_iterations_as_it_likes(files, iterations):
    """All rows up to the one that reported the checkpoint stay, and all after it go."""
    write_rows(files, iterations, [None, "checkpoint_000000", None, "checkpoint_000001"])
    start = at(read_iteration(iterations[1]), "checkpoint_000000")
    prepare_results(files.store, request(trim=True), TRIAL, start)
    assert kept_rows(files) == ([0, 1], [0, 1])


@pytest.mark.parametrize("iteration", ["3", True, None, math.nan])
def test_rows_without_a_number_stay_where_no_row_names_the_checkpoint(files, iteration):
    write_rows(files, [1, iteration, 3], [None] * 3)
    prepare_results(files.store, request(trim=True), TRIAL, at(2))
    assert kept_rows(files)[0] == [0, 1]
    write_rows(files, [1, iteration, 3], [None] * 3)
    prepare_results(files.store, request(2, trim=True), TRIAL, at(None))
    assert kept_rows(files) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("line_end", ["\u2028", "\x0b", "\x85", "\r"])
def test_a_line_end_of_another_kind_within_a_row_ends_no_row(files, line_end):
    rows = [json.dumps({"training_iteration": i, "note": "x"}) for i in (1, 2, 3)]
    rows[0] = rows[0].replace("x", line_end)
    files.store.put(f"{TRIAL}/result.json", "".join(f"{row}\n" for row in rows[:2]).encode())
    prepare_results(files.store, request(), TRIAL, at(2))
    text = "".join(f"{row}\n" for row in [*rows, rows[2]])
    files.store.put(f"{TRIAL}/result.json", text.encode())
    prepare_results(files.store, request(2), TRIAL, at(2))
    kept = files.store.get(f"{TRIAL}/result.json").decode()
    assert kept == "".join(f"{row}\n" for row in rows[:2])


@pytest.mark.parametrize("ended", [None, "failed"])
def test_rows_of_a_trial_that_was_restarted_by_a_restore_that_died_go_too(files, ended):
    """Its attempts have the id of the trial that it replaced; the plan of that restore has both."""
    first = lease.acquire(files.store, restore_id="r", holder="the first night")
    planned = {"trial_id": "old", "action": "restart", "new_trial_id": "t"}
    base = {"name": "", "sha256": "", "size_bytes": 0}
    plan = {"base": base, "trials": [planned]}
    files.store.put(layout.plan_key("r"), json.dumps(plan).encode())
    restarted = replace(request(), trial_id="old", action="restart", new_trial_id="t")
    prepare_results(files.store, restarted, TRIAL, None)
    files.write(1, 2, 3)
    if ended is not None:
        leave_outcome(files.store, Attempt("r", "old"), ended)
    lease.release(files.store, first)
    lease.release(files.store, lease.acquire(files.store, restore_id="r2", holder="r2"))
    prepare_results(files.store, request(restore_id="r2"), TRIAL, at(2))
    rows = [1, 2] if ended is None else [1, 2, 3]
    assert files.read() == (rows, rows)
