"""The two large answers of the page, on a real S3 server, without Airflow.

    uv run python benchmarks/page.py [--trials 5000] [--experiments 300] [--runs 5]

SeaweedFS is started and filled with experiments of real rows (tests/golden): small ones and one large
one, below one prefix. Timed are the functions of `views` and the JSON of what they return:

* `api/experiments`: a scan with its index, the quarantines, and best values that are known already;
* `api/experiment` of the large one, as it is read for the first time, and while its root is the same;
* a column of it, a trial of it, and the curves of fifty trials of it.

Medians, in seconds; the memory is what this process holds more after the large experiment was read.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from airflow_tune_restore.experiments.scan import scan  # noqa: E402
from airflow_tune_restore.restore.quarantine import read_quarantines  # noqa: E402
from airflow_tune_restore.storage.base import ObjectStore  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from airflow_tune_restore.views.best_values import BestValues  # noqa: E402
from airflow_tune_restore.views.curves import MAX_TRIALS, show_curves  # noqa: E402
from airflow_tune_restore.views.experiment import show_column, show_experiment  # noqa: E402
from airflow_tune_restore.views.experiments import list_experiments  # noqa: E402
from airflow_tune_restore.views.seams import Seams  # noqa: E402
from airflow_tune_restore.views.shown import ShownExperiments  # noqa: E402
from airflow_tune_restore.views.trial import show_trial  # noqa: E402
from benchmarks.plan_10000 import make_experiment  # noqa: E402
from tests.support.experiments.many import put_all  # noqa: E402
from tests.support.storage.servers import Server, s3_server  # noqa: E402

PREFIX, LARGE, SMALL_TRIALS = "sweeps", "large", 10


def fill(server: Server, trials: int, experiments: int) -> None:
    """Put the experiments there; all small ones are alike."""
    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch, "small"), Path(scratch, "large")
        make_experiment(small, SMALL_TRIALS, SMALL_TRIALS)
        make_experiment(large, trials, 50)
        names = {f"e{number:04d}": small for number in range(experiments - 1)} | {LARGE: large}
        bodies = {
            f"{PREFIX}/{name}/{path.relative_to(directory)}": path.read_bytes()
            for name, directory in names.items()
            for path in directory.rglob("*")
            if path.is_file()
        }
        put_all(server, bodies)


def resident_mib() -> float:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def measure(name: str, runs: int, answer: Callable[[], Any]) -> Any:
    """Print the median time of an answer and of its JSON, and its size; return the last answer."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        answered = answer()
        body = json.dumps(answered, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        seconds.append(time.perf_counter() - began)
    size = len(body.encode())
    print(f"{name:<42} {statistics.median(seconds):7.3f} s {size:>10,} bytes", flush=True)
    return answered


def measure_list(store: ObjectStore, runs: int) -> None:
    """Measure the list of all experiments, warm."""
    best_values = BestValues()

    def answer() -> dict[str, Any]:
        reports = scan(store)
        found = read_quarantines(store, reports)
        return list_experiments(store, found, best_values, prefix="label", scanned_at=store.now())

    measure("api/experiments, first", 1, answer)
    best_values.wait()
    listed = measure("api/experiments, warm", runs, answer)
    assert not listed["pending"]
    assert all(row["best"] is not None for row in listed["experiments"])


def measure_experiment(store: ObjectStore, runs: int, trials: int) -> None:
    """Measure the large experiment."""
    kept, seams, before = ShownExperiments(), Seams(), resident_mib()

    def answer(kept: ShownExperiments) -> dict[str, Any]:
        shown, root = kept.read(store, store.uri)
        return show_experiment(store, root, shown)

    measure("api/experiment, first", 1, lambda: answer(kept))
    print(f"{'  memory of what is kept of it':<42} {resident_mib() - before:7.0f} MiB")
    measure("api/experiment, root has changed", runs, lambda: answer(ShownExperiments()))
    found = measure("api/experiment, warm", runs, lambda: answer(kept))
    ids = found["trials"]["ids"]
    assert len(ids) == trials
    shown, _ = kept.read(store, store.uri)
    measure("api/experiment/column", runs, lambda: show_column(store, shown, "metrics/date"))
    measure("api/experiment/trial", runs, lambda: show_trial(store, shown, ids[0]))
    some = ids[:MAX_TRIALS]
    measure(
        f"api/experiment/curves, {len(some)} trials",
        runs,
        lambda: show_curves(store, shown, seams, metric="score", trial_ids=some),
    )


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--experiments", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with s3_server() as server:
        os.environ |= server.env
        fill(server, options.trials, options.experiments)
        store = open_store(f"{server.url}/{PREFIX}", in_bulk=True)
        measure_experiment(store.at(LARGE), options.runs, options.trials)
        measure_list(store, options.runs)
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
