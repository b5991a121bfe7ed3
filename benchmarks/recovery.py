"""A recovery of many failed trials beside `Tuner.restore(…).fit()`: here, on a cluster, and in Airflow.

    uv run python benchmarks/recovery.py [--k 8 32 128] [--kinds short longer] [--runs 3]
        [--places local cluster airflow] [--store s3 disk] [--ways auto] [--parallel-by-default N]

A real sweep in which all K trials failed after five of ten iterations is made once, and each run gets a
copy of it. `short`: the other five iterations take 0.1 s each. `longer`: 4 s each, 20 s in all. Each
trial requests one CPU. The ways are taken in turn (A B C A B C …), and a line is the median of its runs:

* `auto`: `tune-restore restore … --strategy auto`. `--parallel-by-default N` adds `--parallel N`.
* `per trial`: the same with `--strategy per_trial --parallel 2`; on the cluster `--parallel 4`.
* `Tuner.restore`: `Tuner.restore(…, resume_errored=True).fit()` in one script. Always taken; `--ways`
  names the others to take.

`local`: on this machine, with private Rays. `cluster`: on a real `ray start --head` with 4 CPUs, as Ray
jobs (`--on ray`); `Tuner.restore` as one submitted job. The wall time is that of the whole command. The
time of a cluster between two runs does not count; what it takes by itself during a run does.

`airflow`: a DAG of one `TuneRestoreTaskGroup` in a real `airflow standalone` (LocalExecutor, SQLite, four
tasks at a time, two of them trials), with private Rays, for K up to 32. Beside it: `empty tasks`, a DAG
of as many tasks in the same order that do nothing, which is what Airflow itself takes; and
`Tuner.restore`, one task that runs the script. The wall time is that of the DAG run. The processor time
is that of all of Airflow meanwhile.

With `s3` the experiment lies on a real S3 server (SeaweedFS) that shares the machine, behind a proxy that
counts requests. Neither of them counts as a process. Processor time and memory: process_meter.py. `Rays`
are the private Rays that were started, `jobs` the Ray jobs. `drivers` is how many of them lived at once,
at most, and `head` the memory of the head's own processes at the peak: all but drivers and workers. After
each run the benchmark stops unless all K trials are TERMINATED after ten iterations.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from airflow_tune_restore.experiments.read import read_base  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from benchmarks.process_meter import ProcessMeter, Usage, adopt_orphans  # noqa: E402
from benchmarks.recovery_sweep import FAILS_AFTER, ITERATIONS  # noqa: E402
from benchmarks.scale import NOTHING, say, table  # noqa: E402
from tests.support.airflow.standalone import Airflow, airflow  # noqa: E402
from tests.support.ray.cluster import RayCluster, ray_cluster  # noqa: E402
from tests.support.storage.counting_proxy import CountingProxy  # noqa: E402
from tests.support.storage.servers import Server, s3_server  # noqa: E402

KINDS = {"short": 0.1, "longer": 4.0}
"""Seconds of an iteration."""

PLACES = ("local", "cluster", "airflow")
CLUSTER_CPUS, LOCAL_PARALLEL, MOST_IN_AIRFLOW = 4, 2, 32
TRAINABLE = "benchmarks.recovery_sweep:train"
HEADS_OWN = ("gcs_server", "raylet/raylet", "/dashboard/", "runtime_env/agent", "log_monitor.py",
             "autoscaler/_private/monitor.py")  # fmt: skip
DAGS = """
import subprocess
import sys

from airflow.sdk import DAG, task, task_group

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

for strategy in ("auto", "per_trial"):
    with DAG(strategy, schedule=None, params={{"uri": ""}}, render_template_as_native_obj=True):
        TuneRestoreTaskGroup(
            experiments="{{{{ [params.uri] }}}}",
            trainable="{trainable}",
            strategy=strategy,
            resume_errored=True,
            stale_after=0,
            max_active_trials={parallel},
        )

with DAG("empty", schedule=None, params={{"trials": 1}}):

    @task
    def plan(params):
        return list(range(params["trials"]))

    @task(max_active_tis_per_dagrun={parallel})
    def trial(number):
        pass

    @task
    def commit():
        return [1]

    @task
    def continue_search(number):
        pass

    @task
    def done():
        pass

    items, committed = plan(), commit()
    trial.expand(number=items) >> committed
    continue_search.expand(number=committed) >> done()

with DAG("tuner_restore", schedule=None, params={{"uri": ""}}):

    @task
    def restore(params):
        command = [sys.executable, "-m", "benchmarks.recovery_sweep", "restore", params["uri"]]
        subprocess.run(command, check=True)

    restore()
"""
"""The same chain as the task group's: plan, trial, commit, continue_search, done."""


class Figure(NamedTuple):
    """The cost of one run. `requests` is None on a disk."""

    wall: float
    usage: Usage
    requests: int | None
    jobs: int | None = None


class Place(NamedTuple):
    """Somewhere to restore.

    Args:
        ways: Each takes the address of a copy, and returns its wall seconds if it knows better.
        lives_on: Whether some of its processes live on after a run.
    """

    ways: dict[str, Callable[[str], float | None]]
    lives_on: bool = False
    cluster: RayCluster | None = None


class Experiments:
    """Copies of the sweeps, on a disk or on S3."""

    def __init__(self, scratch: Path, server: Server | None, proxy: CountingProxy | None) -> None:
        self.repaired = scratch / "repaired"
        self.env = dict(server.env) if server else {}
        if proxy:
            self.env["AWS_ENDPOINT_URL"] = proxy.endpoint
        self._scratch, self._server, self._proxy = scratch, server, proxy
        self._made = 0

    def make(self, trials: int) -> Path:
        """Run a sweep in which all trials fail, once."""
        image = self._scratch / "images" / f"sweep{trials}"
        if not image.exists():
            say(f"making a sweep of {trials} trials")
            self.repaired.unlink(missing_ok=True)
            run_module("make", str(image.parent), image.name, str(trials), str(self.repaired))
            check(str(image), trials, "ERROR", FAILS_AFTER)
        return image

    def copy(self, trials: int, seconds: float) -> str:
        """Return the address of a new copy, whose trials will take these seconds per iteration."""
        image = self.make(trials)
        self.repaired.write_text(str(seconds))
        self._made += 1
        name = f"copy{self._made}"
        if self._server:
            return self._server.upload(image, name)
        return str(shutil.copytree(image, self._scratch / "copies" / name))

    def forget(self) -> None:
        """Delete the copies on the disk."""
        shutil.rmtree(self._scratch / "copies", ignore_errors=True)

    def asked(self) -> int | None:
        """Return how many requests were made since the last call."""
        return len(self._proxy.take()) if self._proxy else None


def environment(**extra: str) -> dict[str, str]:
    """Return the variables of all commands."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "RAY_"))}
    own.pop("PYTHONDONTWRITEBYTECODE", None)  # all start from compiled modules
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**own, "PYTHONPATH": str(ROOT), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **extra}


def run(command: Sequence[str], **env: str) -> None:
    """Run a command to its end; stop with what it printed if it fails."""
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, stdout=said, stderr=said, env=environment(**env), cwd="/tmp"
        )
        if child.wait():
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed: {said.read()[-4000:].decode(errors='replace')}")


def run_module(*arguments: str, **env: str) -> None:
    """Run a command of recovery_sweep.py."""
    run([sys.executable, "-m", "benchmarks.recovery_sweep", *arguments], **env)


def run_ours(uri: str, *options: str, **env: str) -> None:
    """Run `tune-restore restore`."""
    program = [sys.executable, "-m", "airflow_tune_restore.cli.app", "restore", uri]
    run(
        [*program, "--trainable", TRAINABLE, "--resume-errored", "--stale-after", "0", *options],
        **env,
    )


def check(uri: str, trials: int, status: str, iteration: int) -> None:
    """Stop unless all trials are so far."""
    found = [(trial.status.value, trial.iteration) for trial in read_base(open_store(uri)).trials]
    assert found == [(status, iteration)] * trials, found


@contextlib.contextmanager
def local(experiments: Experiments, by_default: list[str]) -> Iterator[Place]:
    """On this machine, with private Rays."""
    env, per_trial = experiments.env, ["--strategy", "per_trial", "--parallel", str(LOCAL_PARALLEL)]
    yield Place(
        {
            "auto": lambda uri: run_ours(uri, "--strategy", "auto", *by_default, **env),
            "per trial": lambda uri: run_ours(uri, *per_trial, **env),
            "Tuner.restore": lambda uri: run_module("restore", uri, **env),
        }
    )


@contextlib.contextmanager
def cluster(experiments: Experiments, by_default: list[str]) -> Iterator[Place]:
    """On a Ray cluster, as jobs."""
    env = {**experiments.env, "PYTHONPATH": str(ROOT)}
    with ray_cluster(env, num_cpus=CLUSTER_CPUS) as head:
        env["RAY_AUTH_TOKEN"] = head.token
        there = ["--on", "ray", "--address", head.address]
        per_trial = ["--strategy", "per_trial", "--parallel", str(CLUSTER_CPUS)]
        ways: dict[str, Callable[[str], float | None]] = {
            "auto": lambda uri: run_ours(uri, *there, "--strategy", "auto", *by_default, **env),
            "per trial": lambda uri: run_ours(uri, *there, *per_trial, **env),
            "Tuner.restore": lambda uri: run_module("submit", head.address, uri, **env),
        }
        yield Place(ways, lives_on=True, cluster=head)


@contextlib.contextmanager
def in_airflow(experiments: Experiments, _by_default: list[str]) -> Iterator[Place]:
    """In a real Airflow."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        dags = Path(scratch, "dags")
        dags.mkdir()
        code = DAGS.format(trainable=TRAINABLE, parallel=LOCAL_PARALLEL)
        (dags / "recovery.py").write_text(code)
        env = {**environment(), **experiments.env}
        with airflow(Path(scratch, "airflow"), dags, **env) as running:

            def run_dag(dag_id: str, **conf: str | int) -> float:
                run_id = running.trigger(dag_id, conf)
                state = running.finish(dag_id, run_id)
                assert state == "success", (running.states(dag_id, run_id), running.log_tail())
                return duration(running, dag_id, run_id)

            yield Place(
                {
                    "auto": lambda uri: run_dag("auto", uri=uri),
                    "per trial": lambda uri: run_dag("per_trial", uri=uri),
                    "empty tasks": lambda trials: run_dag("empty", trials=int(trials)),
                    "Tuner.restore": lambda uri: run_dag("tuner_restore", uri=uri),
                },
                lives_on=True,
            )


def duration(running: Airflow, dag_id: str, run_id: str) -> float:
    """Return the seconds of a DAG run."""
    (found,) = [one for one in running.runs(dag_id) if one["dag_run_id"] == run_id]
    began, ended = (datetime.fromisoformat(found[key]) for key in ("start_date", "end_date"))
    return (ended - began).total_seconds()


OPENED = {"local": local, "cluster": cluster, "airflow": in_airflow}


def kinds_of(command: list[str]) -> list[str]:
    """Return what a process is: of the head itself, the first of a Ray, a driver."""
    text = " ".join(command)
    if command and command[0].startswith("ray::"):
        return []
    if any(mark in text for mark in HEADS_OWN):
        return ["head", "ray"] if "gcs_server" in command[0] else ["head"]
    is_python = bool(command) and "python" in Path(command[0]).name
    ours = "airflow_tune_restore.runner" in command
    theirs = "benchmarks.recovery_sweep" in command and "restore" in command
    return ["driver"] if is_python and (ours or theirs) else []


def measure(
    place: Place, way: str, trials: int, seconds: float, experiments: Experiments, without: set[int]
) -> Figure:
    """Restore a copy, and return the cost."""
    is_empty = way == "empty tasks"
    uri = str(trials) if is_empty else experiments.copy(trials, seconds)
    experiments.asked()
    jobs = submitted(place)
    with ProcessMeter(kinds_of, without=without) as meter:
        began = time.monotonic()
        inside = place.ways[way](uri)
        wall = time.monotonic() - began if inside is None else inside
        if not place.lives_on:
            wait_for_daemons(meter)
        usage = meter.usage()
    after = submitted(place)
    if not is_empty:
        check(uri, trials, "TERMINATED", ITERATIONS)
        experiments.forget()
    started = None if after is None or jobs is None else after - jobs
    return Figure(wall, usage, experiments.asked(), started)


def submitted(place: Place) -> int | None:
    """Return how many jobs the cluster has been given."""
    if place.cluster is None:
        return None
    return sum(bool(job.get("submission_id")) for job in place.cluster.call("/api/jobs/"))


def wait_for_daemons(meter: ProcessMeter) -> None:
    """Wait until the daemons of private Rays are gone, too: what they cost belongs to the run."""
    deadline = time.monotonic() + 30
    while left := meter.left():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def row_of(head: list[str], figures: list[Figure], beside: list[Figure]) -> list[str]:
    """Return the row of a way, with ratios to `Tuner.restore`."""

    def median(value: Callable[[Figure], float | None], of: list[Figure] = figures) -> float | None:
        values = [found for each in of if (found := value(each)) is not None]
        return statistics.median(values) if values else None

    def shown(value: float | None, form: str = ",.0f") -> str:
        return NOTHING if value is None else format(value, form)

    def with_ratio(value: Callable[[Figure], float]) -> list[str]:
        mine, his = median(value), median(value, beside)
        return [shown(mine, ".1f"), shown(mine / his if mine and his else None, ".2f")]

    def most(kind: str) -> Callable[[Figure], float]:
        return lambda each: each.usage.most.get(kind, 0)

    on_cluster = figures[0].jobs is not None

    def started(each: Figure) -> float:
        return each.usage.seen.get("ray", 0) if each.jobs is None else each.jobs

    return [
        *head,
        *with_ratio(lambda each: each.wall),
        *with_ratio(lambda each: each.usage.cpu),
        shown(median(lambda each: each.usage.peak)),
        shown(median(lambda each: each.requests)),
        f"{shown(median(started))} {'jobs' if on_cluster else 'Rays'}",
        shown(median(most("driver"))),
        shown(median(lambda each: each.usage.peaks.get("head")) if on_cluster else None),
    ]


COLUMNS = ("place, store, kind, K, way", "wall s", "ratio", "processor s", "ratio", "peak MiB",
           "requests", "started", "drivers", "head MiB")  # fmt: skip


def main() -> None:
    """Take all runs that are asked for, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--places", nargs="+", choices=PLACES, default=PLACES)
    parser.add_argument("--store", nargs="+", choices=("s3", "disk"), default=["s3"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="the ways to take beside Tuner.restore; else all")
    parser.add_argument("--parallel-by-default", type=int, help="for `auto`; else its own default")
    options = parser.parse_args()
    adopt_orphans()
    number = options.parallel_by_default
    by_default = [] if number is None else ["--parallel", str(number)]
    rows: list[list[str]] = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        contextlib.ExitStack() as all_,
    ):
        server = all_.enter_context(s3_server()) if "s3" in options.store else None
        proxy = all_.enter_context(CountingProxy(server.endpoint)) if server else None
        os.environ.update(server.env if server else {})
        without = own_children()
        try:
            for store in options.store:
                there = (server, proxy) if store == "s3" else (None, None)
                experiments = Experiments(Path(directory), *there)
                for name in options.places:
                    with OPENED[name](experiments, by_default) as place:
                        rows += take(place, f"{name}, {store}", experiments, without, options)
        finally:
            print()
            table(COLUMNS, rows)
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}")


def take(
    place: Place,
    name: str,
    experiments: Experiments,
    without: set[int],
    options: argparse.Namespace,
) -> list[list[str]]:
    """Take all runs of one place in turn, and return the rows of the table."""
    rows = []
    for kind in options.kinds:
        for trials in options.k:
            if name.startswith("airflow") and trials > MOST_IN_AIRFLOW:
                continue
            figures: dict[str, list[Figure]] = {
                way: []
                for way in place.ways
                if options.ways is None or way in (*options.ways, "Tuner.restore")
            }
            for _ in range(options.runs):
                for way, found in figures.items():
                    figure = measure(place, way, trials, KINDS[kind], experiments, without)
                    found.append(figure)
                    say(
                        f"{name}, {kind}, {trials}, {way}: {figure.wall:.1f} s, {figure}, "
                        f"load average {os.getloadavg()[0]:.1f}"
                    )
            beside = figures["Tuner.restore"]
            rows += [
                row_of([f"{name}, {kind}, {trials}, {way}"], found, beside)
                for way, found in figures.items()
            ]
    return rows


def own_children() -> set[int]:
    """Return the ids of this process's children: servers, so far."""
    return {
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    }


if __name__ == "__main__":
    main()
