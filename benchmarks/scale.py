"""What a restore costs as it grows: many trials of one experiment, and many experiments at once.

    uv run python benchmarks/scale.py [--trials 1250 2500 5000 10000] [--experiments 250 500 1000 2000]
        [--only trials experiments requests] [--steps shell json plan task commit undo] [--timeout 1800]
        [--package CHECKOUT]

On a real S3 server (SeaweedFS), a new one for each size. Each step runs in a process of its own. `plan`,
`task`, `commit` and `undo` are what the Airflow tasks execute, without a scheduler: their seconds (wall;
processor, all threads included) are measured inside, after the imports, and their XComs are measured as
JSON. `plan` also starts the restores (lease, seeds, plan). `task` is what the task of one trial reads and
writes before its runner starts. `shell` and `json` are `tune-restore plan` as a table and with --json:
whole processes, with interpreter and imports. Peak memory is what the kernel accounts to the finished
process, with Airflow's and other imports.

`trials`: one experiment, of which every second trial ended with ERROR and is resumed from its checkpoint.
`experiments`: experiments of ten trials, one of which is resumed, all of them in one plan task and one
commit task. Experiments are made of real rows (tests/golden). No trial runs: between `task` and `commit`,
records are written as runners leave them when all trials finish; that is not measured. An undo waits
until the lease has rested for 31 s since the commit. The benchmark waits before it instead, so this wait
is not in its seconds.

`requests`: the same steps at two smaller sizes, through a proxy that counts. What one more resumed trial
or one more experiment costs is the difference between them. `--package` measures the package of another
checkout, with the experiments and records of this one. A step that takes longer than `--timeout` is
ended, and what needs it is left out. A small experiment comes first and is not shown: it compiles modules
and warms the page cache. The slope is that of the line that fits the logarithms of seconds and size best,
of wall and of processor time: 1 is linear, 2 is quadratic. The server shares the machine.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.storage.counting_proxy import (  # noqa: E402
    VERBS,
    Asked,
    CountingProxy,
    by_verb,
    state_reads,
)
from tests.support.storage.servers import s3_server  # noqa: E402

STEPS = {"shell": [], "json": [], "plan": [], "task": ["plan"], "commit": ["plan"],
         "undo": ["plan", "commit"]}  # fmt: skip
"""All steps in their order, and those that each needs."""

OF_EXPERIMENTS = ("plan", "commit")
REST_SECONDS = 33.0
"""Longer than `protocol.kept_lease.REST_SECONDS`."""

MAX_XCOM_BYTES, MAX_LOG_LINES = 256 * 1024, 10_000
"""The promised bounds of each XCom but the mapped list, and of the log of each task."""

TRIALS_EACH, EVERY = 10, 2
NOTHING = "-"
XCOMS = (("plan", "return_value"), ("plan", "outcomes"),
         ("commit", "return_value"), ("commit", "experiments"))  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """The cost of one step: seconds of wall and processor time (None if it took too long), and MiB.

    `lines` is how many lines it printed: those of its log.
    """

    wall: float | None
    cpu: float | None
    peak: float
    lines: int = 0


class Size(NamedTuple):
    """The size of a part: how many experiments, of how many trials each; every n-th of them errored."""

    experiments: int
    trials: int
    every: int

    @property
    def resumed(self) -> int:
        """How many trials are resumed."""
        return self.experiments * math.ceil(self.trials / self.every)


class Run:
    """The steps of a restore of one size, on a server of its own."""

    def __init__(self, size: Size, options: argparse.Namespace) -> None:
        self.size = size
        self.addresses = [
            f"s3://experiments/sweep-{number:05d}" for number in range(size.experiments)
        ]
        self.figures: dict[str, Figure] = {}
        self.xcoms: dict[tuple[str, str], int] = {}
        self.asked: dict[str, list[Asked]] = {}
        self._package = str(options.package.resolve())
        self._timeout: float = options.timeout

    def take(self, chosen: Sequence[str], *, through_proxy: bool) -> None:
        """Take the chosen steps, and those that they need. `task` always goes through the proxy."""
        needed = [step for step in STEPS if step in chosen or any(step in STEPS[c] for c in chosen)]
        with (
            s3_server() as server,
            CountingProxy(server.endpoint) as proxy,
            scratch_directory() as scratch,
        ):
            direct, counted = server.env, {**server.env, "AWS_ENDPOINT_URL": proxy.endpoint}
            self._take(f"make:{self.size.trials}:{self.size.every}", scratch, direct)
            for step in needed:
                if any(self._lacks(need) for need in STEPS[step]):
                    continue
                if step == "commit":
                    self._take("runs", scratch, direct)
                if step == "undo":
                    time.sleep(REST_SECONDS)
                env = counted if through_proxy or step == "task" else direct
                self.figures[step] = self._take(step, scratch, env)
                self.asked[step] = proxy.take()
                say(
                    f"{self.size}: {step}: {self.figures[step]}, load average {os.getloadavg()[0]:.1f}"
                )
            for step, key in XCOMS:
                with contextlib.suppress(FileNotFoundError):
                    pushed = json.loads((scratch / f"{step}.json").read_text())
                    self.xcoms[step, key] = len(json.dumps(pushed.get(key)))

    def _lacks(self, step: str) -> bool:
        """Whether a step took too long, or was left out."""
        return step not in self.figures or self.figures[step].wall is None

    def _take(self, step: str, scratch: Path, server: dict[str, str]) -> Figure:
        """Run a step in a new process."""
        is_shell, is_measured = step in ("shell", "json"), step in STEPS
        if is_shell:
            command = ["-m", "airflow_tune_restore.cli.app", "plan", self.addresses[0]]
            command += ["--resume-errored", *(["--json"] if step == "json" else [])]
        else:
            command = [str(ROOT / "benchmarks/scale_steps.py"), step, str(scratch)]
            command += self.addresses
        timeout = self._timeout if is_measured else 3600
        figure = run_python(command, scratch, server, package=self._package, timeout=timeout)
        if figure.wall is None and not is_measured:
            sys.exit(f"{step} took longer than {timeout} s.")
        return figure


def run_python(
    command: Sequence[str],
    scratch: Path,
    server: Mapping[str, str],
    *,
    package: str = str(ROOT),
    timeout: float = 3600,
) -> Figure:
    """Run a step in a new process. Its seconds are those that it measures, else those of the process."""
    env = {**os.environ, **server, "SCALE_PACKAGE": package, "PYTHONPATH": package}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # all start from compiled modules
    inside = scratch / "figures.json"
    inside.unlink(missing_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, *command], stdout=said, stderr=said, env=env, cwd=scratch
        )
        timer = threading.Timer(timeout, child.kill)
        timer.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall, peak = time.monotonic() - began, usage.ru_maxrss / 1024
        is_late = timer.finished.is_set()
        timer.cancel()
        if is_late:
            return Figure(None, None, peak)
        said.seek(0)
        printed = said.read()
    if status:
        sys.exit(f"{' '.join(command)[:200]} failed: {printed[-3000:].decode(errors='replace')}")
    seconds = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime}
    if inside.exists():
        seconds = json.loads(inside.read_text())
    return Figure(**seconds, peak=peak, lines=printed.count(b"\n"))


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make a directory for one size, and delete it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def say(text: str) -> None:
    """Show progress beside the tables."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table; all columns but the first are numbers."""
    print(f"| {' | '.join(head)} |")
    print(f"|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def slope(points: list[tuple[float, float]]) -> str:
    """Return the slope of the line that fits the logarithms best; a dash with less than two points."""
    if len(points) < 2:  # noqa: PLR2004
        return NOTHING
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return f"{above / sum((a - x) ** 2 for a in xs):.2f}"


def print_part(runs: dict[int, Run], what: str, chosen: Sequence[str], timeout: float) -> None:
    """Print seconds, memory and the sizes of XComs of one part, by size."""
    sizes = [f"{size:,} {what}" for size in runs]

    def seconds(figure: Figure | None) -> str:
        if figure is None:
            return NOTHING
        if figure.wall is None:
            return f"> {timeout:.0f}"
        return f"{figure.wall:.2f} ({figure.cpu:.2f})"

    steps = [step for step in STEPS if step in chosen]
    rows = []
    for step in steps:
        by_size = {size: run.figures.get(step) for size, run in runs.items()}
        done = {n: one for n, one in by_size.items() if one is not None and one.wall and one.cpu}
        wall = slope([(n, one.wall) for n, one in done.items()])
        cpu = slope([(n, one.cpu) for n, one in done.items()])
        rows.append([NAMES[step], *map(seconds, by_size.values()), f"{wall} ({cpu})"])
    table(["seconds, wall (processor)", *sizes, "slope"], rows)
    peaks = [
        [NAMES[step], *(f"{run.figures[step].peak:,.0f}" if step in run.figures else NOTHING
                        for run in runs.values())]
        for step in steps
    ]  # fmt: skip
    table(["peak MiB", *sizes], peaks)
    if "task" in steps:
        asked = [run.asked.get("task", []) for run in runs.values()]
        table(
            [NAMES["task"], *sizes],
            [
                ["requests", *(f"{len(one):,}" for one in asked)],
                ["bytes read", *(f"{sum(each.size for each in one):,}" for one in asked)],
            ],
        )
    table(
        ["bytes of an XCom", *sizes],
        [
            [f"{step}, `{key}`", *(f"{run.xcoms[step, key]:,}" if (step, key) in run.xcoms else NOTHING
                                   for run in runs.values())]
            for step, key in XCOMS
        ],
    )  # fmt: skip


NAMES = {
    "shell": "`tune-restore plan`, a table",
    "json": "`tune-restore plan --json`",
    "plan": "plan task",
    "task": "one trial task, before its runner",
    "commit": "commit task",
    "undo": "undo",
}


def print_requests(small: Run, large: Run, each: str, count: int) -> None:
    """Print the requests of each step for one more `each`; the runs differ by `count` of them."""
    rows = []
    for step in large.asked:
        few, many = by_verb(small.asked[step]), by_verb(large.asked[step])
        more = {verb: (many[verb] - few[verb]) / count for verb in VERBS}
        size = sum(a.size for a in large.asked[step]) - sum(a.size for a in small.asked[step])
        reads = {
            key: times
            for key, times in sorted(state_reads(large.asked[step]).items())
            if f"s3://experiments/{key}".startswith(large.addresses[0] + "/")
        }
        shown = " + ".join(map(str, reads.values())) or "0"
        counts = [f"{more[verb]:.2f}" for verb in VERBS]
        total = f"{sum(more.values()):.2f}"
        kib = f"{size / count / 1024:,.1f}"
        rows.append([NAMES[step], *counts, total, kib, f"{len(large.asked[step]):,}", shown])
    one, all_of_it = f"per {each}", f"all of {large.size.experiments} x {large.size.trials}"
    table(["requests " + one, *VERBS, "sum", f"KiB read {one}", all_of_it, "state reads"], rows)


def measure_part(
    sizes: dict[int, Size], what: str, steps: Sequence[str], options: argparse.Namespace
) -> None:
    """Measure one part at all sizes; print it even if the last size fails."""
    runs: dict[int, Run] = {}
    try:
        for number, size in sizes.items():
            runs[number] = run = Run(size, options)
            run.take(steps, through_proxy=False)
    finally:
        print_part(runs, what, steps, options.timeout)


def count_part(
    sizes: Sequence[Size], each: str, steps: Sequence[str], options: argparse.Namespace
) -> None:
    """Count the requests of both sizes, and print the difference."""
    small, large = runs = [Run(size, options) for size in sizes]
    for run in runs:
        run.take(steps, through_proxy=True)
    is_one = large.size.experiments == 1
    count = (
        large.size.resumed - small.size.resumed
        if is_one
        else large.size.experiments - small.size.experiments
    )
    print_requests(small, large, each, count)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = ("trials", "experiments", "requests")
    parser.add_argument("--trials", type=int, nargs="+", default=[1250, 2500, 5000, 10_000])
    parser.add_argument("--experiments", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--count-trials", type=int, nargs=2, default=[200, 400])
    parser.add_argument("--count-experiments", type=int, nargs=2, default=[10, 20])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for each step")
    parser.add_argument(
        "--package", type=Path, default=ROOT, help="checkout of the package to measure"
    )
    options = parser.parse_args()
    of_experiments = [step for step in OF_EXPERIMENTS if step in options.steps]
    print(f"Package: {options.package.resolve()}\n")
    warm_up = [step for step in options.steps if step != "undo"]  # which would wait
    Run(Size(1, 4, EVERY), options).take(warm_up, through_proxy=False)
    if "trials" in options.only:
        print("One experiment, every second trial is resumed:\n")
        sizes = {n: Size(1, n, EVERY) for n in options.trials}
        measure_part(sizes, "trials", options.steps, options)
    if "experiments" in options.only:
        print("Experiments of ten trials, one of which is resumed:\n")
        sizes = {n: Size(n, TRIALS_EACH, TRIALS_EACH) for n in options.experiments}
        measure_part(sizes, "experiments", of_experiments, options)
    if "requests" in options.only:
        counted = [Size(1, n, EVERY) for n in options.count_trials]
        count_part(counted, "resumed trial", options.steps, options)
        counted = [Size(n, TRIALS_EACH, TRIALS_EACH) for n in options.count_experiments]
        count_part(counted, "experiment", of_experiments, options)
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
