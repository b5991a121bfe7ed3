"""What a restore in batches costs: more trials, and more experiments, than one DAG run takes.

    uv run python benchmarks/batches.py [--only trials experiments] [--trials 5000] [--experiments 2000]
        [--max-trials N]

`trials`: one experiment, of which all trials ended with ERROR. `experiments`: experiments of ten trials,
one of which ended with ERROR. Both on a real S3 server (SeaweedFS), a new one for each part, and with
Airflow's default `[core] max_map_length` (1,024), if `--max-trials` is not smaller.

Each batch is what one DAG run does: the sensor's search of the prefix, plan, commit and repeat, each as
its Airflow task executes it, in a process of its own. No trial runs: between plan and commit, records are
written as runners leave them when all trials finish; that is not measured. The next batch begins if the
operator behind `repeat` would start a DAG run. XComs are measured as JSON, and a log is all that the
process of a task printed.

The benchmark stops if an XCom but the mapped list has 256 KiB, or a log more than 10,000 lines. After
each batch it stops if a trial ran twice or is not TERMINATED, or if the row of another trial is not the
same text (of many experiments that wait, fifty are read). At the end it reads all rows and all records
again, and stops if Ray's own ExperimentAnalysis finds a trial that is not TERMINATED (of many experiments
it reads fifty). Seconds and memory are as in benchmarks/scale.py.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import (  # noqa: E402
    MAX_LOG_LINES,
    MAX_XCOM_BYTES,
    TRIALS_EACH,
    Figure,
    Size,
    run_python,
    say,
    scratch_directory,
    table,
)
from tests.support.storage.servers import s3_server  # noqa: E402

PREFIX = "s3://experiments/sweeps"
STEPS = ("find", "plan", "commit", "repeat")
FIRST_RUN = "manual__night"
MAPPED_LIST = ("plan", "return_value")
HEAD = ("batch", "trials", "of experiments", "trials that wait", "find", "plan", "commit",
        "peak MiB", "XCom, bytes", "mapped list, bytes", "log, lines")  # fmt: skip


class Batches:
    """The DAG runs that restore everything below a prefix, on one server.

    Args:
        scratch: Where the steps leave figures and XComs.
        server: Environment variables with which clients find the server.
        max_trials: The plan's argument; None for Airflow's limit alone.
    """

    def __init__(self, scratch: Path, server: dict[str, str], max_trials: int | None) -> None:
        self.rows: list[list[str]] = []
        self._scratch = scratch
        self._server = server
        self._more = [str(max_trials)] if max_trials else []
        self._run_id = FIRST_RUN

    def make(self, size: Size) -> None:
        """Upload the experiments."""
        addresses = [f"{PREFIX}/sweep-{number:05d}" for number in range(size.experiments)]
        step = f"make:{size.trials}:{size.every}"
        self._python("scale_steps.py", step, str(self._scratch), *addresses)
        self._step("remember")

    def run_through(self) -> None:
        """Run one batch after the other, until nothing waits."""
        has_next = True
        while has_next:
            figures = {step: self._step(step) for step in ("find", "plan")}
            self._step("runs")
            figures["commit"] = self._step("commit")
            self._step("check")
            figures["repeat"] = self._step("repeat")
            self._add_row(figures)
            next_run_id = self._read("repeat")
            has_next = next_run_id is not None
            self._run_id = next_run_id or self._run_id
        assert not self._read("commit")["totals"]["waiting_trials"], (
            "trials wait, and no one starts"
        )
        self._step("check_all")

    def _add_row(self, figures: dict[str, Figure]) -> None:
        """Describe the batch in a row of the table; stop if it exceeds a bound."""
        totals, batch = self._read("commit")["totals"], self._read("batch")
        assert totals["trials_run"] == totals["trials_finished"] == batch["trials"], totals
        pushed = {step: self._read(step) for step in ("find", "plan", "commit")}
        xcoms = {
            (s, key): len(json.dumps(value)) for s in pushed for key, value in pushed[s].items()
        }
        mapped = xcoms.pop(MAPPED_LIST)
        largest = max(xcoms, key=lambda at: xcoms[at])
        longest = max(figures, key=lambda step: figures[step].lines)
        assert xcoms[largest] < MAX_XCOM_BYTES, xcoms
        assert figures[longest].lines <= MAX_LOG_LINES, figures
        shown = [figures[step] for step in ("find", "plan", "commit")]
        self.rows.append(
            [
                str(len(self.rows) + 1),
                *(f"{n:,}" for n in (*batch.values(), totals["waiting_trials"])),
                *(f"{each.wall:.1f} ({each.cpu:.1f})" for each in shown),
                " / ".join(f"{each.peak:,.0f}" for each in shown),
                f"{xcoms[largest]:,} ({largest[0]}, `{largest[1]}`)",
                f"{mapped:,}",
                f"{figures[longest].lines:,} ({longest})",
            ]
        )

    def _step(self, step: str) -> Figure:
        figure = self._python(
            *("batch_steps.py", step, str(self._scratch), self._run_id, PREFIX, *self._more)
        )
        say(f"{self._run_id}: {step}: {figure}, load average {os.getloadavg()[0]:.1f}")
        return figure

    def _python(self, script: str, *arguments: str) -> Figure:
        command = [str(ROOT / "benchmarks" / script), *arguments]
        return run_python(command, self._scratch, self._server)

    def _read(self, name: str):  # noqa: ANN202  whatever a task pushes
        return json.loads((self._scratch / f"{name}.json").read_text())


def measure(size: Size, max_trials: int | None) -> None:
    """Restore experiments of one size; print the batches even if a later one fails."""
    with s3_server() as server, scratch_directory() as scratch:
        batches = Batches(scratch, server.env, max_trials)
        try:
            batches.make(size)
            batches.run_through()
        finally:
            table(HEAD, batches.rows)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = ("trials", "experiments")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--max-trials", type=int)
    options = parser.parse_args()
    print("Seconds are wall (processor). MiB are those of find / plan / commit.\n")
    if "trials" in options.only:
        print(f"One experiment of {options.trials:,} failed trials:\n")
        measure(Size(1, options.trials, 1), options.max_trials)
    if "experiments" in options.only:
        print(f"{options.experiments:,} experiments of ten trials, one of which failed:\n")
        measure(Size(options.experiments, TRIALS_EACH, TRIALS_EACH), options.max_trials)
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
