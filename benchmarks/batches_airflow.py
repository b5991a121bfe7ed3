"""A DAG that restores 300 experiments in batches by itself, under a real Airflow, and what that leaves.

    uv run python benchmarks/batches_airflow.py [--experiments 300] [--max-trials 100]

Each experiment lies on a disk and has two trials, one of which ended with ERROR. So each DAG run maps
`trial` and `continue_search`, which is skipped, over as many items. The DAG is one
`TuneRestoreTaskGroup(repeat=True)`, run by `airflow standalone` (scheduler, triggerer, API server, DAG
processor, SQLite). It is triggered once. Runners are recorded: they leave what a trial leaves, and train
nothing. All else is Airflow's own.

It prints the DAG runs, the rows of each of Airflow's tables, the XComs and the longest logs. It stops if
a trial is not restored, or ran twice, if an XCom but the mapped list has 256 KiB, if a log has more than
10,000 lines, or if a trial left more in the database than Airflow itself keeps of each mapped task.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from airflow_tune_restore.experiments.read import read_base  # noqa: E402
from airflow_tune_restore.experiments.trial import TrialStatus  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from benchmarks.scale import MAX_LOG_LINES, MAX_XCOM_BYTES, say, table  # noqa: E402
from tests.support.airflow.database import (  # noqa: E402
    OF_AIRFLOW,
    largest_xcoms,
    rows_of_all,
    rows_of_task,
)
from tests.support.airflow.standalone import Airflow, airflow  # noqa: E402
from tests.support.experiments.built import make_experiment, make_row  # noqa: E402

DAG_ID = "in_batches"
CODE = '''
"""Restores all experiments below a prefix, so many trials at a time."""

from airflow.sdk import DAG

from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from tests.support.airflow import recorded

recorded.install()

with DAG("{dag_id}", schedule=None, max_active_runs=1):
    TuneRestoreTaskGroup(
        prefix="{prefix}",
        trainable="project.train:train",
        resume_errored=True,
        wait=False,
        repeat=True,
        max_trials={max_trials},
        max_active_trials=8,
    )
'''
TRIAL, SEARCH = "restore.trial", "restore.continue_search"
MAPPED_LIST = ("restore.plan", "return_value")


def make_experiments(prefix: Path, count: int) -> None:
    """Write experiments of two trials, one of which failed."""
    for number in range(count):
        failed = make_row(f"bad{number:05d}", status="ERROR", last_result_time=float(number))
        rows = [failed, make_row(f"done{number:05d}")]
        make_experiment(prefix / f"sweep-{number:05d}", rows, total_samples=len(rows))


def run_through(running: Airflow) -> list[dict[str, Any]]:
    """Trigger the DAG once, and return all DAG runs when the last one has ended."""
    running.trigger(DAG_ID)
    shown = 0
    while True:
        runs = sorted(running.runs(DAG_ID), key=lambda run: run["run_after"])
        ended = [run for run in runs if run["state"] in ("success", "failed")]
        for run in ended[shown:]:
            say(f"{run['dag_run_id']}: {run['state']}, load average {os.getloadavg()[0]:.1f}")
        shown = len(ended)
        if len(ended) == len(runs):  # one that has ended has started the next one before
            return runs
        time.sleep(2)


def check_experiments(prefix: Path, count: int) -> None:
    """Stop if a trial is not TERMINATED, or if not each failed trial ran exactly once."""
    attempts: Counter[str] = Counter()
    for directory in sorted(prefix.glob("sweep-*")):
        trials = read_base(open_store(str(directory))).trials
        assert {trial.status for trial in trials} == {TrialStatus.TERMINATED}, directory
        for attempt in directory.glob(".tune_restore/*/trials/*/attempts/*"):
            attempts[f"{directory.name} {attempt.parents[1].name}"] += 1
    assert len(attempts) == count, len(attempts)
    assert set(attempts.values()) == {1}, attempts.most_common(3)


def print_runs(running: Airflow, runs: list[dict[str, Any]]) -> None:
    """Print what each DAG run took, and the seconds of its tasks."""
    rows = []
    for number, run in enumerate(runs, start=1):
        tasks = running.tasks(DAG_ID, run["dag_run_id"])
        took = {each["task_id"].rpartition(".")[2]: each["duration"] or 0 for each in tasks}
        trials = sum(each["task_id"] == TRIAL for each in tasks)
        totals = running.xcom(DAG_ID, run["dag_run_id"], "restore.commit", "totals")
        assert totals["trials_run"] == totals["trials_finished"] == trials, totals
        began, ended = (datetime.fromisoformat(run[key]) for key in ("start_date", "end_date"))
        seconds = [f"{took[task]:.1f}" for task in ("find", "plan", "commit")]
        whole = f"{(ended - began).total_seconds():.0f}"
        rows.append([str(number), str(trials), str(totals["waiting_trials"]), whole, *seconds])
    table(["DAG run", "trials run", "wait", "seconds", "find", "plan", "commit"], rows)


def print_database(running: Airflow, before: dict[str, int], trials: int) -> None:
    """Print the rows of the tables that grew, and the XComs; stop if there is something per trial."""
    database = running.home / "airflow.db"
    of_trials, of_searches = (rows_of_task(database, DAG_ID, task) for task in (TRIAL, SEARCH))
    after = rows_of_all(database)
    grown = {name: count - before[name] for name, count in after.items() if count > before[name]}
    rows = []
    for name, count in sorted(grown.items(), key=lambda item: -item[1]):
        mapped = [of_trials.get(name, 0), of_searches.get(name, 0)]
        others = count - sum(mapped)
        rows.append([f"`{name}`", *(f"{n:,}" for n in (count, *mapped, others))])
        assert others < trials, (name, others)
    table(["table", "rows more", "`trial`", "`continue_search`", "all else"], rows)
    xcoms = largest_xcoms(database, DAG_ID)
    shown = sorted(xcoms.items(), key=lambda item: -item[1])
    table(["XCom", "bytes, at most"], [[f"{t}, `{k}`", f"{size:,}"] for (t, k), size in shown])
    for mapped_task in (of_trials, of_searches):
        assert set(mapped_task) <= OF_AIRFLOW, mapped_task
        assert mapped_task["task_instance"] == trials, mapped_task
    assert all(size < MAX_XCOM_BYTES for at, size in xcoms.items() if at != MAPPED_LIST), xcoms


def print_logs(running: Airflow) -> None:
    """Print the longest log of each task, as lines that people see; stop if one is too long."""
    longest: Counter[str] = Counter()
    for path in (running.home / "logs" / f"dag_id={DAG_ID}").rglob("*.log"):
        task = next(part for part in path.parts if part.startswith("task_id="))
        events = [json.loads(line) for line in path.read_text().splitlines() if line]
        lines = sum(str(event.get("event", "")).count("\n") + 1 for event in events)
        longest[task] = max(longest[task], lines)
    rows = [[task.removeprefix("task_id="), f"{lines:,}"] for task, lines in longest.most_common()]
    table(["log", "lines, at most"], rows)
    assert max(longest.values()) <= MAX_LOG_LINES, longest


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=300)
    parser.add_argument("--max-trials", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        prefix, dags = Path(scratch, "sweeps"), Path(scratch, "dags")
        dags.mkdir()
        make_experiments(prefix, options.experiments)
        values = {"dag_id": DAG_ID, "prefix": prefix, "max_trials": options.max_trials}
        (dags / f"{DAG_ID}.py").write_text(CODE.format(**values))
        with airflow(Path(scratch, "airflow"), dags, PYTHONPATH=str(ROOT)) as running:
            running.unpause(DAG_ID)
            before = rows_of_all(running.home / "airflow.db")
            say("Airflow is up.")
            runs = run_through(running)
            assert {run["state"] for run in runs} == {"success"}, running.log_tail()
            check_experiments(prefix, options.experiments)
            print_runs(running, runs)
            print_logs(running)
            print_database(running, before, options.experiments)
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
