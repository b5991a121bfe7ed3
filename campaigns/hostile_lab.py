"""What the targets of the hostile campaign share: experiments to spoil, a clock, and what is shown.

The bad experiment stands beside a good one below one prefix. In memory both are dictionaries of objects.
"""

import contextlib
import functools
import io
import json
import logging
import pickle
import random
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import ProgressTail
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.follow import ask_to_stop
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.memory import MemoryStore
from campaigns import hostile_inputs as inputs
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import Attempt, beat, leave_attempt, leave_outcome

GOOD, BAD = "team/good", "team/bad"
RESTORE_ID = "r1"
ALL = ResumeFlags(finished=ResumeType.SKIP, unfinished=ResumeType.RESUME, errored=ResumeType.RESUME)
NOW = datetime(2026, 11, 25, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=2)
FAR_AWAY = NOW + timedelta(days=30000)
"""The end of the window of each night: a record may give another one."""

LONGEST_WAIT_SECONDS = 20 * 60.0
"""The longest that all waiting for one hostile experiment may take together."""

SECRET = "marker-of-a-secret-8d1f"  # noqa: S105  what lies outside, and must never be seen
MOST_SHOWN = 20_000
"""Characters of one message of a log, or of one error: more of it helps nobody."""

ROOMS_THAT_WAIT = tuple(
    f"airflow_tune_restore.{room}."
    for room in (
        *("protocol", "experiments", "restore", "operators"),
        *("launch.ray.attempt_job", "launch.ray.job"),
    )
)
"""Where waiting takes no time here; clients of servers wait by the real clock."""

Objects = dict[str, tuple[bytes, datetime]]


class WaitedTooLongError(BaseException):
    """Whoever writes to the bucket holds up a task."""


class Clock:
    """A clock that sleeping moves on, so that a minute of watching takes no time.

    It stands in the place of the module `time`, and is the clock of stores in memory.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept = 0.0
        self.wall: Callable[[], datetime] = lambda: NOW

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def now(self) -> datetime:
        return self.wall()

    def monotonic(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.slept += seconds
        if self.slept > LONGEST_WAIT_SECONDS:
            raise WaitedTooLongError(f"{self.slept:.0f} s are waited for one experiment")

    def replace_time(self, rooms: tuple[str, ...]) -> Callable[[], None]:
        """Let all code of these packages wait by this clock, however it was given its own.

        Returns:
            What gives it the real time back.
        """
        ours = {time.monotonic: self.monotonic, time.sleep: self.sleep}
        undo = contextlib.ExitStack()
        for name, module in list(sys.modules.items()):
            if not f"{name}.".startswith(rooms):
                continue
            if vars(module).get("time") is time:
                undo.enter_context(mock.patch.object(module, "time", self))
            classes = [found for found in vars(module).values() if isinstance(found, type)]
            for function in (
                *vars(module).values(),
                *(m for c in classes for m in vars(c).values()),
            ):
                defaults = getattr(function, "__kwdefaults__", None) or {}
                waits = {
                    parameter: ours[value]
                    for parameter, value in defaults.items()
                    if value in (time.monotonic, time.sleep)
                }
                if waits:
                    undo.enter_context(mock.patch.dict(defaults, waits))
        return undo.close


class Ear(logging.Handler):
    """Hears what the package writes into logs."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@dataclass
class Lab:
    """What targets share: real experiments to spoil, and the input that is being tried."""

    scratch: str
    clock: Clock = field(default_factory=Clock)
    ear: Ear = field(default_factory=Ear)
    kept: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._give_time_back = self.clock.replace_time(ROOMS_THAT_WAIT)
        self.logger = logging.getLogger("airflow_tune_restore")
        self._logged_before = self.logger.handlers, self.logger.propagate, self.logger.level
        self.logger.handlers, self.logger.propagate = [self.ear], False
        self.logger.setLevel(logging.INFO)
        self.golden = golden_objects()
        self.restored = restored_objects(self.clock)
        self.whole = whole_objects(self.clock)
        (self.good_report,) = scan(self.store(dict(self.golden)))

    def close(self) -> None:
        """Leave the process as it was: the package waits and logs as ever."""
        self._give_time_back()
        self.logger.handlers, self.logger.propagate, level = self._logged_before
        self.logger.setLevel(level)

    def begin(self) -> None:
        """Forget the last input."""
        self.kept.clear()
        self.ear.said.clear()
        self.clock.slept = 0.0
        self.clock.wall = lambda: NOW

    def check_said(self) -> None:
        """Check what was written into logs meanwhile."""
        for text in self.ear.said:
            assert_shown(text)

    def keep(self, name: str, body: bytes) -> bytes:
        """Remember a part of the input."""
        self.kept[name] = body
        return body

    def store(self, objects: Objects) -> MemoryStore:
        return MemoryStore(objects, clock=self.clock.now)


def output_of(write: Callable[[], None]) -> str:
    """Return what a command prints, and check that a terminal could show it."""
    made = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(made), contextlib.redirect_stderr(made):
        write()
    text = made.buffer.getvalue().decode()  # type: ignore[attr-defined]
    for line in text.split("\n"):
        assert_shown(line, folds=text.startswith(("{", "[\n")), most=None)  # JSON is for machines
    return text


def assert_shown(text: str, *, folds: bool = False, most: int | None = MOST_SHOWN) -> None:
    """Check that a text is fit to be shown, and tells no secret."""
    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert not odd, f"shown to a user: {odd[:5]} in {text[:100]!r}"
    assert folds or not re.search("::(end)?group::", text), "would fold an Airflow log"
    assert most is None or len(text) <= most, f"{len(text)} characters are shown: {text[:100]!r}"
    assert SECRET not in text, f"what lies outside is shown: {text[:100]!r}"


def any_name(rng: random.Random) -> str:
    """Return a name that nobody honest gives."""
    parts = [
        rng.choice((*inputs.TEXTS, "a", "A", "%41", "%2541", "..", "%2E", "."))
        for _ in range(rng.choice((1, 1, 2)))
    ]
    return "".join(parts)


def spoil(rng: random.Random, lab: Lab, place: str, *, weight: float = 0.7) -> Objects:
    """Return a copy of the golden experiment at `place`, some of its files hostile.

    `weight` is how often one of the root is: the state, tuner.pkl and the searcher's state.
    """
    objects = moved(lab.golden, GOOD, place)
    for _ in range(rng.choice((1, 1, 2, 3))):
        in_root = rng.random() < weight
        files = [key for key in objects if "/checkpoint_" not in key]
        key = rng.choice([key for key in files if key.count("/") == 2 or not in_root] or files)
        body = objects[key][0]
        pickled = key.endswith(".pkl") or "variant" in key
        made = (inputs.hostile_pickle if pickled else inputs.hostile_json)(rng, body)
        if rng.random() < 0.1:
            del objects[key]
            key = key.rpartition("/")[0] + "/" + (any_name(rng) or "x")
        objects[key] = (lab.keep(key, made), LONG_AGO)
    return objects


def moved(objects: Objects, source: str, place: str) -> Objects:
    """Return the same objects at another place."""
    return {place + key.removeprefix(source): value for key, value in objects.items()}


@functools.cache
def _golden_files() -> tuple[tuple[str, bytes], ...]:
    root = inputs.EXPERIMENTS[-1]
    return tuple(
        (path.relative_to(root).as_posix(), path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    )


def golden_objects() -> Objects:
    """Return a real experiment whose driver was killed."""
    return {f"{GOOD}/{name}": (body, LONG_AGO) for name, body in _golden_files()}


def night_options(strategy: str = "per_trial", **choices: Any) -> PrepareOptions:
    """Return what the nights of this campaign are told: the drivers are known to be dead."""
    return PrepareOptions(
        choices=PlanChoices(flags=ALL, strategy=strategy, **choices),
        stale_after=timedelta(0),
        pause_at=FAR_AWAY,
    )


_SAMPLES = 5
_SEARCHER = STATE_NAME.replace("experiment_state", "basic-variant-state")


def _started(objects: Objects, strategy: str) -> tuple[MemoryStore, RestorePlan]:
    """Return an experiment of three trials, of which a restore has just begun."""
    store = MemoryStore(objects, clock=lambda: LONG_AGO)
    rows = [
        make_row("done", last_result={"training_iteration": 4, "score": 8}, last_result_time=4.0),
        make_row("bad", status="ERROR", last_result={"training_iteration": 2}, last_result_time=3.0),
        make_row("hung", status="RUNNING", last_result={"training_iteration": 1}, last_result_time=2.0),
    ]  # fmt: skip
    searcher = {"_total_samples": _SAMPLES, "_finished": False, "_live_trials": set()}
    store.put(_SEARCHER, pickle.dumps(searcher))
    store.put(STATE_NAME, make_state(rows))
    options = night_options(strategy)
    prepared = prepare_restore(store, RESTORE_ID, options)
    assert not isinstance(prepared, str)
    plan, _ = start_restore(prepared, holder="test", ttl_seconds=60)
    assert plan is not None
    return store, plan


RECIPES: tuple[bytes, ...] = (
    b'{"trainable": "team_a.train:train"}',
    b'{"trainable": "registered", "imports": ["team_a.register"], "resume_errored": true}',
    b'{"schema": 1, "trainable": "team_a.train:train", "python": "/opt/a/python", "image": "a:1", '
    b'"imports": ["team_a.x"], "param_space": "team_a.x:space", "search_alg": "team_a.x:search", '
    b'"env": {"A": "1", "B": ""}, "runtime_env": {"working_dir": "s3://b/code.zip", "pip": ["x"], '
    b'"py_modules": ["https://x/y.whl"], "env_vars": {"C": "3"}}, "strategy": "per_trial"}',
    b'{"trainable": "team_a.train:train", "resume_config": {"finished": "restart"}, '
    b'"resume_unfinished": false, "restart_errored": true, "ignore_tuner": true, "trust_name": true}',
)
"""Recipes as sweeps write them."""

DONE: dict[str, Any] = {"iteration": 6, "metrics": {"score": 1.5}}
_TAIL = ProgressTail(first=2, reports=[{"trial_id": "bad", "iteration": 3, "metrics": {"a": 1.5}}])


_DAG_RUN = (
    b'{"dag_id": "nightly", "run_id": "manual__1", "started_at": "2026-11-29T03:00:00+00:00"}'
)
"""The start of a DAG run that was cleared, and took its lease again."""


def restored_objects(clock: Clock) -> Objects:
    """Return an experiment in the middle of a restore: one attempt has ended, one was lost."""
    objects: Objects = {}
    store, plan = _started(objects, "per_trial")
    request = leave_attempt(
        store, plan, "bad", make_row("bad", last_result={"training_iteration": 6}), **DONE
    )
    beat(store, request)
    _leave_the_rest(store, plan, "bad")
    store.put(layout.results_backup_key(RESTORE_ID, "bad"), b'{"training_iteration": 1}\n')
    store.put(layout.lease_dag_run_key(1), _DAG_RUN)
    lost = claim_attempt(store, plan, "hung", RunnerSettings(trainable="m:train"))
    leave_outcome(store, lost, "failed", cause="", error="gone")
    AttemptRecords.of(store, lost).record_exit(lost.attempt, 137, "OOMKilled")
    return _half_committed(objects, clock)


def whole_objects(clock: Clock) -> Objects:
    """Return an experiment whose one run of all trials has ended."""
    objects: Objects = {}
    store, plan = _started(objects, "whole_experiment")
    rows = [
        make_row(name, last_result={"training_iteration": 6}) for name in ("done", "bad", "hung")
    ]
    request = leave_attempt(
        store,
        plan,
        layout.WHOLE_EXPERIMENT,
        *rows,
        status="",
        final_trial_id=layout.WHOLE_EXPERIMENT,
    )
    beat(store, request)
    assert plan.continues_search
    key = layout.snapshot_key(RESTORE_ID, layout.WHOLE_EXPERIMENT, 1)
    snapshot = json.loads(store.get(key))
    snapshot["stats"]["searcher"] = 1
    store.put(key, json.dumps(snapshot).encode())
    _leave_the_rest(store, plan, layout.WHOLE_EXPERIMENT)
    leave_outcome(store, Attempt(RESTORE_ID, "bad"), **DONE)
    leave_outcome(store, Attempt(RESTORE_ID, "hung"), "failed")
    for name in ("bad", "hung"):
        store.put(layout.progress_key(RESTORE_ID, name, 1), _TAIL.to_json())
        ask_to_stop(store, RESTORE_ID, name)
    ask_to_stop(store, RESTORE_ID, layout.WHOLE_EXPERIMENT)
    return _half_committed(objects, clock)


def _leave_the_rest(store: ObjectStore, plan: RestorePlan, unit: str) -> None:
    """Leave what is seldom there: a recipe, progress, a request to stop, an end, saved states."""
    where = (plan.restore_id, unit, 1)
    store.put(layout.RECIPE, RECIPES[0])
    store.put(layout.progress_key(*where), _TAIL.to_json())
    store.put(layout.stopped_key(*where), b"{}")
    store.put(layout.exit_key(*where), b'{"exit_code": 137, "message": "OOMKilled"}')
    store.put(f"{layout.attempt_dir(*where)}/{layout.callbacks_name(layout.KEPT)}", b"\x80\x05}.")
    searcher = layout.numbered(1, f"searcher-state-{layout.KEPT}.pkl")
    store.put(f"{layout.searcher_dir(plan.restore_id, 1)}/{searcher}", b"\x80\x05}.")


def _half_committed(objects: Objects, clock: Clock) -> Objects:
    """Leave the record of a commit that was cut off, and a ledger."""
    done = MemoryStore(dict(objects), clock=clock.now)
    commit_restore(done, RESTORE_ID)
    record = json.loads(done.get(layout.commit_key(RESTORE_ID)))
    store = MemoryStore(objects, clock=lambda: LONG_AGO)
    store.put(layout.commit_key(RESTORE_ID), json.dumps({**record, "is_done": False}).encode())
    store.put(layout.LEDGER, done.get(layout.LEDGER))
    return objects
