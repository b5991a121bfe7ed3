"""One step of benchmarks/batches.py, in a process of its own; it leaves figures and XComs in a directory.

    SCALE_PACKAGE=CHECKOUT python benchmarks/batch_steps.py STEP DIRECTORY RUN_ID PREFIX [MAX_TRIALS]

The files of the directory are those of scale_steps.py, and three more: `original`, the state of all
experiments before the first batch; `taken.json`, the trials of all batches so far; and `batch.json`, how
many the last batch took.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.scale_steps import (  # noqa: E402
    STATE,
    key_of,
    leave_runs,
    open_bucket,
    trials_of,
    write_figures,
)
from tests.support.airflow import steps  # noqa: E402

_SAMPLE = 50
"""So many experiments that wait are read after each batch, and by Ray at the end."""

Rows = dict[str, list[str]]


def take(directory: Path, step: str, run_id: str, prefix: str, max_trials: int | None) -> None:
    """Take a step of one batch, as its Airflow task does."""

    def read(task: str) -> Any:
        return json.loads((directory / f"{task}.json").read_text())

    def find() -> Any:
        return steps.run_find(prefix)

    def plan() -> Any:
        return steps.run_plan(read("find")["return_value"], run_id, max_trials=max_trials)

    def commit() -> Any:
        return steps.run_commit(read("plan")["outcomes"], read("find").get("left_alone"))

    def repeat() -> Any:
        return steps.run_repeat(read("commit")["totals"], run_id)

    write_figures(directory, step, {f.__name__: f for f in (find, plan, commit, repeat)}[step])


def check_batch(directory: Path, prefix: str) -> None:
    """Stop if a trial ran twice or is not TERMINATED, or if the row of any other trial has changed."""
    original = (directory / "original").read_bytes()
    taken: dict[str, list[str]] = defaultdict(list)
    path = directory / "taken.json"
    if path.exists():
        taken.update(json.loads(path.read_text()))
    batch = trials_of(json.loads((directory / "plan.json").read_text()))
    for item in batch:
        assert item["trial_id"] not in taken[item["experiment"]], item
        taken[item["experiment"]].append(item["trial_id"])
    path.write_text(json.dumps(taken))
    touched = {item["experiment"] for item in batch}
    before = rows_of(original)
    for address in touched:
        check_rows(before, rows_of(newest_state(address)), set(taken[address]))
    waiting = sorted(set(experiments_below(prefix)) - taken.keys())
    for address in sample(waiting):
        assert state_keys(address) == [f"{key_of(address)}/{STATE}"], address
        assert newest_state(address) == original, address
    found = {"trials": len(batch), "experiments": len(touched)}
    (directory / "batch.json").write_text(json.dumps(found))


def check_rows(before: Rows, after: Rows, taken: set[str]) -> None:
    """Check all rows of one experiment: those of trials that were not taken are the same text."""
    assert list(before) == list(after)
    for trial_id, row in after.items():
        if trial_id in taken:
            assert json.loads(row[0])["status"] == "TERMINATED", row[0]
        else:
            assert row == before[trial_id], trial_id


def check_all(directory: Path, prefix: str) -> None:
    """Stop if a failed trial of any experiment has not run exactly once, or if Ray reads another end."""
    original = rows_of((directory / "original").read_bytes())
    failed = {key for key, row in original.items() if json.loads(row[0])["status"] == "ERROR"}
    addresses = experiments_below(prefix)

    def check(address: str) -> None:
        check_rows(original, rows_of(newest_state(address)), failed)
        requests = [key for key in keys_below(address) if key.endswith("/request.json")]
        ran = [key.split("/trials/")[1].partition("/")[0] for key in requests]
        assert sorted(ran) == sorted(failed), (address, len(ran), len(failed))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check, addresses))
    read_as_ray(sample(addresses), len(original))


def read_as_ray(addresses: list[str], trials: int) -> None:
    """Stop if Ray's own reading has a trial that is not TERMINATED."""
    from ray.tune import ExperimentAnalysis

    for address in addresses:
        found = [trial.status for trial in ExperimentAnalysis(address).trials]
        assert found == ["TERMINATED"] * trials, (address, len(found), set(found))


def sample(addresses: list[str]) -> list[str]:
    """Return some of them, from first to last."""
    return addresses[:: max(len(addresses) // _SAMPLE, 1)]


def rows_of(state: bytes) -> Rows:
    """Return the rows of a state, as the text that they are, by trial id."""
    return {json.loads(row[0])["trial_id"]: row for row in json.loads(state)["trial_data"]}


def newest_state(address: str) -> bytes:
    """Return the state file that Ray would load: the last one by name."""
    return bytes(open_bucket().get(state_keys(address)[-1]).bytes())


def state_keys(address: str) -> list[str]:
    """Return the keys of the state files of an experiment, in order."""
    key = key_of(address)
    listed = open_bucket().list_with_delimiter(f"{key}/")["objects"]
    return sorted(o["path"] for o in listed if o["path"].startswith(f"{key}/experiment_state-"))


def experiments_below(prefix: str) -> list[str]:
    """Return the addresses of all experiments, in order."""
    listed = open_bucket().list_with_delimiter(f"{key_of(prefix)}/")["common_prefixes"]
    bucket = prefix.removesuffix(key_of(prefix))
    return sorted(f"{bucket}{key}" for key in listed if "/." not in key)


def keys_below(address: str) -> Iterator[str]:
    """Yield the keys of all records of an experiment."""
    for part in open_bucket().list(f"{key_of(address)}/.tune_restore/"):
        yield from (each["path"] for each in part)


def main() -> None:
    """Take the step that the arguments name."""
    step, place, run_id, prefix, *max_trials = sys.argv[1:]
    directory = Path(place)
    match step:
        case "remember":
            (directory / "original").write_bytes(newest_state(experiments_below(prefix)[0]))
        case "runs":
            leave_runs(directory)
        case "check":
            check_batch(directory, prefix)
        case "check_all":
            check_all(directory, prefix)
        case _:
            take(directory, step, run_id, prefix, int(max_trials[0]) if max_trials else None)


if __name__ == "__main__":
    main()
