"""Killed anywhere: the whole chain on a real S3 server, killed at every step and inside every write.

    python -m campaigns.kills --kills 180 --seed 7              the nightly form
    python -m campaigns.kills --seed 7 --only recorded:12       one round again

One failed experiment is restored in round after round. Four lanes run side by side: in one the runners
are real ones with Ray, in one the trials share a real driver, in one all trials are one real run that
their tasks follow, and in one runners write what real ones had written (recorded_runner), so that kills
of the other steps are cheap. In each
round a task is killed by kill -9 (the operator's process, the runner, or both) and tried again as Airflow
does, or given up, and the DAG run of the next night goes on.
"""

from tests.support.airflow import home as airflow_home  # noqa: I001  first: it sets AIRFLOW_HOME

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol import lease
from airflow_tune_restore.arguments import MIN_LEASE_TTL
from airflow_tune_restore.restore.abandoned import commit_abandoned
from airflow_tune_restore.storage.fs import open_store
from campaigns.checks import Ended, Files, find_losses
from campaigns.night import Night, children, kill
from tests.support.storage.proxy import AFTER, INSIDE, Fault, Proxy
from campaigns.chain import Chain
from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES, environment, make_experiments
from tests.support.storage.servers import Server, s3_server

assert airflow_home.HOME
KIND = "two_errored"
RECORDED, REAL, SHARED, WHOLE = "recorded", "real", "shared", "whole"
STRATEGIES = {
    RECORDED: "per_trial",
    REAL: "per_trial",
    SHARED: "shared_driver",
    WHOLE: "whole_experiment",
}
OF_MANY = (SHARED, WHOLE)
"""The lanes in which one runner has several trials, and may outlive the task that started it."""

LEASE_TTL = MIN_LEASE_TTL.total_seconds()
"""As short as `plan` takes it, so that no round waits long to take over."""
QUIET_SHARE = 2.0
"""After so many of these a silent run of all counts as dead."""
ROUNDS_PER_KILL = 4
"""A lane that needs more rounds than this strikes nothing any more."""
RECORDED_RUNNER = f'#!/bin/sh\nexec "{sys.executable}" -m campaigns.recorded_runner "$@"\n'


@dataclass(frozen=True)
class Point:
    """Where a process is killed.

    Args:
        label: For people.
        victim: `operator` (with it the launcher), `runner`, `ray`: all that the runner has started, or
            `node`: all of them.
        how: `inside` or `after` a write, or `moment`: some time after it.
        pattern: The request that triggers it; none: the start of the try.
        nth: Which of those requests.
        seconds: How long after it.
    """

    label: str
    victim: str
    how: str
    pattern: str = ""
    nth: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return it as a table shows it."""
        return f"{self.victim} killed {self.how} {self.label}"


def _writes(victim: str, *labels: tuple[str, str, int]) -> list[Point]:
    return [
        Point(label, victim, how, pattern, nth)
        for label, pattern, nth in labels
        for how in (INSIDE, AFTER)
    ]


CLAIM = ("lease claim", r"PUT .*\.claim\.json", 1)
MOMENTS = [Point("its start", "operator", "moment", "", 1, s) for s in (0.02, 0.1, 0.3)]
SEED = ("seed", r"PUT .*seed\.json", 1)
PLAN = [
    *_writes(
        "operator",
        ("self-test", r"PUT .*selftest", 1),
        CLAIM,
        SEED,
        ("second seed", SEED[1], 2),
        ("plan", r"PUT .*plan\.json", 1),
    ),
    *MOMENTS,
]
TRIAL = [
    *_writes(
        "operator",
        ("lease renewal", r"PUT .*lease/.*heartbeat\.json", 1),
        ("request", r"PUT .*request\.json", 1),
    ),
    *_writes(
        "runner",
        ("first beat", r"PUT .*attempts/.*heartbeat\.json", 1),
        ("lease renewal", r"PUT .*lease/.*heartbeat\.json", 2),
        ("row count", r"PUT .*start-.*\.json", 1),
        ("checkpoint", r"PUT .*checkpoint_\d+/", 1),
        ("result.json", r"PUT .*/result\.json", 1),
        ("progress.csv", r"PUT .*/progress\.csv", 1),
        ("snapshot", r"PUT .*attempts/.*/state\.json", 1),
        ("outcome", r"PUT .*outcome\.json", 1),
    ),
]
RECORD = [("commit record", r"PUT .*commit\.json", 1)]
COMMIT = [
    *_writes(
        "operator",
        *RECORD,
        ("state file", r"PUT .*experiment_state-", 1),
        ("end of the commit record", RECORD[0][1], 2),
        ("release", r"PUT .*release\.json", 1),
    ),
    *MOMENTS,
]
SETTLE = [*PLAN, *COMMIT, *_writes("operator", ("lease re-entered", r"PUT .*heartbeat\.json", 1))]


_SNAPSHOT = r"PUT .*attempts/.*/state\.json"
_BEAT = r"PUT .*attempts/.*heartbeat\.json"


def _real_point(rng: random.Random) -> Point:
    """Draw where a chain with a real runner is hit."""
    return _draw_point(
        rng,
        ["runner", "runner", "runner", "node", "operator"],
        ["start", "training", "training", "write", "write", "write"],
        [
            ("checkpoint", r"(PUT|POST) .*checkpoint_\d+/", 6),
            ("checkpoint", r"(PUT|POST) .*checkpoint_\d+/", 6),
            ("result.json", r"(PUT|POST) .*/result\.json", 6),
            ("snapshot", _SNAPSHOT, 4),
            ("outcome", r"PUT .*outcome\.json", 1),
            ("beat", _BEAT, 3),
        ],
    )


def _shared_point(rng: random.Random) -> Point:
    """Draw where a chain is hit whose trials share a driver."""
    return _draw_point(
        rng,
        ["runner", "runner", "node", "ray", "operator", "operator"],
        ["start", "training", "write", "write", "write", "write"],
        [
            ("handing over", r"PUT .*desk/.*run\.json", 1),
            ("request", r"PUT .*request\.json", 3),
            ("beat", _BEAT, 6),
            ("row count", r"PUT .*start-.*\.json", 2),
            ("checkpoint", r"(PUT|POST) .*checkpoint_\d+/", 8),
            ("result.json", r"(PUT|POST) .*/result\.json", 8),
            ("snapshot", _SNAPSHOT, 6),
            ("outcome", r"PUT .*outcome\.json", 3),
            ("progress", r"PUT .*attempts/.*progress\.json", 4),
            ("clearing of the desk", r"DELETE .*desk/|POST .*[?&]delete", 2),
        ],
    )


def _draw_point(
    rng: random.Random, victims: list[str], kinds: list[str], writes: list[tuple[str, str, int]]
) -> Point:
    """Draw a point of a chain with real runners; the order of the draws belongs to each seed."""
    victim, kind = rng.choice(victims), rng.choice(kinds)
    if kind == "start":
        return Point("start", victim, "moment", _BEAT, 1, rng.uniform(0, 9))
    if kind == "training":
        return Point("training", victim, "moment", _SNAPSHOT, 1, rng.uniform(0, 6))
    label, pattern, most = rng.choice(writes)
    return Point(label, victim, rng.choice([INSIDE, AFTER]), pattern, rng.randint(1, most))


def _outage(rng: random.Random) -> Fault:
    how = rng.choice(["refuse", "delay", "slow_down", "drop_answer", INSIDE])
    return Fault(
        how,
        pattern=rng.choice(["", "PUT ", "GET "]),
        nth=rng.randint(1, 12),
        times=rng.randint(1, 6),
        seconds=rng.uniform(0.2, 2.0) if how == "delay" else 0.0,
    )


@dataclass
class Script:
    """What is done in one round: by task, where its tries are killed, one after another.

    Args:
        kills: Name of a task -> points, one a try.
        abandon_at: Task whose kill ends the first DAG run for good.
        settle: Where the plan of the next night is killed.
        outage_at: Task during whose first try the storage fails.
    """

    kills: dict[str, list[Point]]
    abandon_at: str | None = None
    settle: list[Point] = field(default_factory=list)
    outage_at: str | None = None


def write_script(lane: str, number: int, rng: random.Random) -> Script:
    """Write the script of a round; the recorded lane walks through all points in turn."""
    tasks = ["plan", "trial 0", "trial 1", "commit"]
    outage_at = rng.choice(tasks) if rng.random() < 0.5 else None
    trial = rng.choice(["trial 0", "trial 1"])
    if lane == SHARED:
        kills = {"trial 0": [_shared_point(rng)], "trial 1": [_shared_point(rng)]}
        abandon_at = trial if number % 3 == 2 else None
        return Script(kills, abandon_at, outage_at=outage_at)
    if lane != RECORDED:
        kills = {"trial 0": [_real_point(rng)], "trial 1": [_real_point(rng), _real_point(rng)]}
        abandon_at = trial if number % 3 == 2 else None
        return Script(kills, abandon_at, outage_at=outage_at)
    step, half = divmod(number, 2)
    points = {"plan": PLAN, trial: TRIAL, "commit": COMMIT}
    if half == 0:
        kills = {task: [_turn(points[task], step)] for task in points}
        return Script(kills, outage_at=outage_at)
    given_up = list(points)[step % 3]
    kills = {given_up: [_turn(points[given_up], step // 3 + rng.randrange(3))]}
    return Script(kills, given_up, settle=[_turn(SETTLE, step)], outage_at=outage_at)


def _turn(points: list[Point], number: int) -> Point:
    """Take the points in turn, in strides, so that a short campaign sees a bit of everything."""
    stride = next((n for n in (7, 5, 3) if len(points) % n), 1)
    return points[number * stride % len(points)]


@dataclass
class Setting:
    """What all rounds share.

    Args:
        s3: The server.
        failed: The failed experiment.
        scratch: Directory for logs and the recording.
        ttl: Of leases, in seconds.
        undisturbed: The failed experiment after a restore that nobody disturbed.
    """

    s3: Server
    failed: Files
    scratch: Path
    ttl: float
    undisturbed: Files = field(default_factory=dict)

    def filesystem(self) -> Any:
        return self.s3.filesystem()

    def url(self, name: str) -> str:
        """Return one that no other campaign on this machine has: runs are found, and ended, by it."""
        return f"{self.s3.url}/{os.getpid()}/{name}/{KIND}"

    def upload(self, name: str) -> str:
        url = self.url(name)
        root = url.removeprefix("s3://")
        self.filesystem().pipe({f"{root}/{key}": body for key, body in self.failed.items()})
        return url

    def download(self, url: str) -> Files:
        filesystem, root = self.filesystem(), url.removeprefix("s3://")
        # markers of directories are found under the names of objects that do not exist
        bodies = filesystem.cat(filesystem.find(root), on_error="omit")
        return {key.removeprefix(f"{root}/"): body for key, body in bodies.items()}

    def chain(self, lane: str, name: str, url: str, endpoint: str) -> Chain:
        recorder = self.scratch / "recorded-runner"
        if not recorder.exists():
            recorder.write_text(RECORDED_RUNNER)
            recorder.chmod(0o755)
        ray = environment(
            TUNE_TEST_HEALED="1",
            TUNE_TEST_STEP_SECONDS="1",
            TUNE_TEST_JOURNAL=f"{self.scratch}/{name}.journal",
            TUNE_TEST_RECORDING=f"{self.scratch}/recording",
        )
        changed = {key: value for key, value in ray.items() if os.environ.get(key) != value}
        return Chain(
            experiment=url,
            lease_ttl=self.ttl,
            trainable=TRAINABLES[KIND],
            env={**self.s3.env, "AWS_ENDPOINT_URL": endpoint},
            python=str(recorder) if lane == RECORDED else None,
            runner_env=changed,
            log=f"{self.scratch}/{name}.log",
            strategy=STRATEGIES[lane],
            quiet_seconds=self.ttl * QUIET_SHARE,
        )


class Round:
    """One restore of one copy of the experiment, disturbed as its script says."""

    def __init__(
        self, setting: Setting, lane: str, number: int, seed: int, most: int | None
    ) -> None:
        self.name = f"{lane}-{number}"
        self.killed: Counter[str] = Counter()
        self.outages: Counter[str] = Counter()
        self.told: list[str] = []
        self._rng = random.Random(f"{seed} {lane} {number}")
        self._script = write_script(lane, number, self._rng)
        self._setting, self._lane, self._most = setting, lane, most
        self._armed: dict[str, tuple[Point, Fault]] = {}
        self._runners: set[int] = set()
        self._was_abandoned = False

    def run(self) -> list[str]:
        """Carry it out and return what was lost."""
        setting = self._setting
        self.url = setting.upload(self.name)
        with Proxy(setting.s3.endpoint) as self._proxy:
            chain = setting.chain(self._lane, self.name, self.url, self._proxy.endpoint)
            script = self._script
            at_once = self._lane == SHARED
            night = Night(chain, "night-1", self._before, self._after, at_once=at_once)
            try:
                night.carry_out()
                self._was_abandoned = night.is_abandoned
                if night.is_abandoned:
                    script.kills, script.abandon_at = {"plan": script.settle}, None
                    # it waits until the lease of this one has run out, and until a run of all is over
                    Night(
                        chain, "night-2", self._before, self._after, tries=120, at_once=at_once
                    ).carry_out()
            finally:
                for session in self._runners | set(self._runs_of_all()):
                    for pid in _members(session):
                        kill(pid)
            return self._check(chain)

    def _commit_abandoned(self) -> list[str]:
        """Do what the next restore does first, where the next night found all trials finished.

        It is skipped then, and a commit that was killed after its state file keeps its lease so long.
        """
        store = open_store(self.url)
        states = [e.name for e in store.list_dir() if layout.is_state_file(e.name)]
        if not self._was_abandoned or not lease.unreleased(store, but=""):
            return []
        commit_abandoned(store, restore_id="the-next", holder="the campaign")
        lease.release(store, lease.check_held(store, "the-next"))
        after = [e.name for e in store.list_dir() if layout.is_state_file(e.name)]
        return [] if after == states else [f"settling made {sorted(set(after) - set(states))}"]

    def _check(self, chain: Chain) -> list[str]:
        settled = self._commit_abandoned()
        root = self.url.removeprefix(f"s3://{self._setting.s3.bucket}/")
        writes = [
            type(write)(write.key.removeprefix(f"{root}/"), write.sha256, write.at)
            for write in list(self._proxy.writes)
        ]
        journal = Path(chain.runner_env["TUNE_TEST_JOURNAL"])
        lines = journal.read_text().splitlines() if journal.exists() else []
        ended = Ended(
            open_store(self.url), self._setting.download(self.url), writes,
            [json.loads(line) for line in lines],
        )  # fmt: skip
        return settled + find_losses(self._setting.failed, self._setting.undisturbed, ended)

    def _before(self, night: Night, task: str, number: int) -> None:
        script = self._script
        if task == script.outage_at and number == 1:
            self._outage = self._proxy.add(_outage(self._rng))
        points = script.kills.get(task, [])
        is_over = self._most is not None and self.killed.total() >= self._most
        if task not in self._armed and points and not is_over:
            point = points.pop(0)
            how = point.how if point.how in (INSIDE, AFTER) else "delay"
            fault = Fault(
                how, point.pattern, point.nth, then=lambda: self._strike(night, task, point)
            )
            self._armed[task] = (point, self._proxy.add(fault))

    def _after(self, night: Night, task: str, number: int) -> None:
        script = self._script
        if task == script.outage_at and number == 1:
            if self._outage.hits:
                self.outages[self._outage.how] += 1
            script.outage_at = None
            self._outage.times = 0
        if task in self._armed and (self._armed[task][1].hits or task != "plan"):
            # a plan that waits for a lease to run out is tried again and again until it is hit
            _, fault = self._armed.pop(task)
            fault.times = 0
        if task == script.abandon_at and not script.kills.get(task):
            night.abandon()

    def _strike(self, night: Night, task: str, point: Point) -> None:
        arguments = (night, task, night.operator_pids.get(task, 0), point)
        if point.how == "moment":
            timer = threading.Timer(point.seconds, self._kill, arguments)
            timer.daemon = True
            timer.start()
        else:
            self._kill(*arguments)

    def _runs_of_all(self) -> list[int]:
        """Return the runs of all trials of this round; whoever started one may be gone."""
        if self._lane not in OF_MANY:
            return []
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if _is_runner(pid, self.url)]

    def _kill(self, night: Night, task: str, operator: int, point: Point) -> None:
        if night.operator_pids.get(task) != operator or not operator:
            return  # that try is over
        runners = self._runs_of_all() or [pid for pid in children(operator) if _is_runner(pid)]
        self._runners.update(runners)
        members = {pid for runner in runners for pid in _members(runner)}
        hit = False
        if point.victim in ("operator", "node"):
            hit = kill(operator)
        if point.victim == "node":
            _kill_all(members)
        if point.victim == "ray":
            hit = _kill_all(members - set(runners))
        if point.victim == "runner":
            hit = _kill_all(runners)
        if hit:
            self.killed[str(point)] += 1
            self.told.append(f"{time.strftime('%H:%M:%S')} {point}")


def _kill_all(pids: Iterable[int]) -> bool:
    return sum(kill(pid) for pid in pids) > 0


def _is_runner(pid: int, of: str = "") -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"--request" in command and of.encode() in command


@dataclass
class Report:
    """What the rounds of a campaign came to; in one with real runners at most so many are killed."""

    seed: int
    most: int
    rounds: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    kills_by_lane: Counter[str] = field(default_factory=Counter)
    outages: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def add(self, lane: str, number: int, done: Round, lost: list[str]) -> None:
        with self.lock:
            self.rounds += 1
            self.killed += done.killed
            self.kills_by_lane[lane] += done.killed.total()
            self.outages += done.outages
            if lane != RECORDED:
                self.urls.append(done.url)
            print(f"{lane}:{number}: {'; '.join(done.told) or 'nobody was killed'}", flush=True)
            for loss in lost:
                self.lost.append(f"--seed {self.seed} --only {lane}:{number}: {loss}")
                print(f"LOST {self.lost[-1]}", flush=True)

    def show(self, seconds: float) -> None:
        for what, times in sorted(self.killed.items()):
            print(f"{times:4}  {what}")
        for how, times in sorted(self.outages.items()):
            print(f"{times:4}  storage: {how}")
        print(*(f"LOST {loss}" for loss in self.lost), sep="\n")
        lanes = ", ".join(f"{lane} {kills}" for lane, kills in sorted(self.kills_by_lane.items()))
        print(
            f"seed {self.seed}: {self.killed.total()} kills ({lanes}) "
            f"and {self.outages.total()} outages in {self.rounds} rounds, "
            f"{seconds / 60:.1f} min; lost: {len(self.lost) or 'nothing'}"
        )


def run_lane(setting: Setting, lane: str, kills: int, rounds: int, report: Report) -> None:
    """Run rounds until so many processes were killed; that so many rounds did not is a failure, too."""
    for number in range(rounds):
        if report.kills_by_lane[lane] >= kills or len(report.lost) > 20:
            return
        run_round(setting, lane, number, report)
    if report.kills_by_lane[lane] < kills:
        done = report.kills_by_lane[lane]
        report.lost.append(f"{lane}: {done} instead of {kills} kills in {rounds} rounds")


def run_round(setting: Setting, lane: str, number: int, report: Report) -> None:
    most = None if lane == RECORDED else report.most
    done = Round(setting, lane, number, report.seed, most)
    try:
        lost = done.run()
    except Exception as error:  # noqa: BLE001  the next round may go on
        traceback.print_exc()
        lost = [f"{type(error).__name__}: {error} (log: {setting.scratch}/{done.name}.log)"]
    report.add(lane, number, done, lost)
    log = setting.scratch / f"{done.name}.log"
    if lost and log.exists():
        print(f"{log} ended with:\n{log.read_text(errors='replace')[-8000:]}", flush=True)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Give a directory that goes with the campaign; `TUNE_TEST_CAMPAIGN` names one that stays."""
    if named := os.environ.get("TUNE_TEST_CAMPAIGN"):
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named)
        return
    # what was killed may leave a process that writes its last words there
    with tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@contextmanager
def prepared(experiment: Path | None, scratch: Path, ttl: float) -> Iterator[Setting]:
    """Make the failed experiment if none is given, start the server, restore one copy undisturbed."""
    source = experiment or scratch / "made" / KIND
    if not source.exists():
        make_experiments(source.parent, [KIND])
    failed = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    with s3_server() as s3:
        os.environ.update(s3.env)
        setting = Setting(s3, failed, scratch, ttl)
        url = setting.upload("undisturbed")
        with Proxy(s3.endpoint) as proxy:
            # one run of all is the cheapest; a slow machine is no disturbance
            chain = setting.chain(WHOLE, "undisturbed", url, proxy.endpoint)
            chain = replace(chain, lease_ttl=600.0, quiet_seconds=600.0)
            Night(chain, "night-1", lambda *_: None, lambda *_: None).carry_out()
        setting.undisturbed = setting.download(url)
        for key, body in setting.undisturbed.items():
            path = scratch / "recording" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        yield setting


def as_ray_reads(urls: list[str]) -> list[str]:
    """Let Ray's ExperimentAnalysis read the experiments; return what differs from the first."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ray.tuner_restore", "describe", *urls],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    line = next((x for x in done.stdout.splitlines() if x.startswith("DESCRIBED ")), None)
    if line is None:
        return [f"Ray could not read them: {done.stderr[-2000:]}"]
    wanted, *others = [_essence(item) for item in json.loads(line.removeprefix("DESCRIBED "))]
    return [
        f"{url} as Ray reads it: {found} instead of {wanted}"
        for url, found in zip(urls[1:], others, strict=True)
        if found != wanted
    ]


def _essence(described: dict[str, Any]) -> list[Any]:
    return [
        described["errors"],
        described["terminated"],
        [(t["trial_id"], t["status"], t["metric"], len(t["rows"])) for t in described["trials"]],
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; the exit code says whether something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m campaigns.kills")
    parser.add_argument("--kills", type=int, default=180, help="how many at least")
    parser.add_argument("--real", type=int, default=36, help="how many of them with real runners")
    parser.add_argument(
        "--shared", type=int, default=20, help="how many in a driver that trials share"
    )
    parser.add_argument("--whole", type=int, default=20, help="how many in one run of all trials")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--most", type=int, default=9, help="kills in a round with real runners")
    parser.add_argument("--only", help="one round, as in recorded:12")
    parser.add_argument("--experiment", type=Path, help="a failed one that was made before")
    parser.add_argument(
        "--ttl",
        type=float,
        default=LEASE_TTL,
        help=f"seconds a lease lives; default: {LEASE_TTL:.0f}",
    )
    parser.add_argument(
        "--rounds", type=int, help="in each lane at most; fewer kills than asked for are a failure"
    )
    options = parser.parse_args(arguments)
    for name in ("aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    print(f"seed {options.seed}", flush=True)
    report, started = Report(options.seed, options.most), time.monotonic()
    with (
        scratch_directory() as scratch,
        prepared(options.experiment, scratch, options.ttl) as setting,
    ):
        print(
            f"prepared in {time.monotonic() - started:.0f} s, logs in {setting.scratch}", flush=True
        )
        if options.only:
            lane, _, number = options.only.partition(":")
            run_round(setting, lane, int(number), report)
        else:
            shares = {REAL: options.real, SHARED: options.shared, WHOLE: options.whole}
            shares[RECORDED] = options.kills - sum(shares.values())

            def run(lane: str) -> None:
                kills = shares[lane]
                rounds = options.rounds or kills * ROUNDS_PER_KILL
                run_lane(setting, lane, kills, rounds, report)

            with ThreadPoolExecutor(len(shares)) as pool:
                list(pool.map(run, shares))
        report.lost += as_ray_reads([setting.url("undisturbed"), *report.urls])
    report.show(time.monotonic() - started)
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
