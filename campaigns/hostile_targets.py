"""Everything that is read back from storage, each as one function that is given hostile input.

A target draws its input from `rng`, keeps it with `lab.keep` (so that it can be saved), and reads it.
It may return, or raise one of our errors; anything else is a failure. Add a target to `TARGETS`, an
object of ours to `RECORDS`.
"""

import contextlib
import io
import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import KeyNotFoundError, TuneRestoreError
from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.experiment import samples_left, tuner_facts
from airflow_tune_restore.experiments.facts import Facts, fingerprint
from airflow_tune_restore.experiments.health import ExperimentReport, Health, Sign
from airflow_tune_restore.experiments.index import build_row, encode_row
from airflow_tune_restore.experiments.read import (
    read_base,
    read_checkpoint_choices,
    read_experiment,
)
from airflow_tune_restore.experiments.scan import examine, scan
from airflow_tune_restore.experiments.state import (
    MalformedStateError,
    State,
    encode_state,
    parse_pieces,
    parse_state,
)
from airflow_tune_restore.experiments.symbolic import SymbolicError, read_pickle
from airflow_tune_restore.restore import attempts, lease
from airflow_tune_restore.restore.commit import commit_restore, settle_abandoned
from airflow_tune_restore.restore.draft import DraftOptions, draft_restore, start_draft
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.lines import describe_line
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.records import read_record
from airflow_tune_restore.restore.request import (
    PROGRESS_PREFIX,
    RunnerProgress,
    RunnerRequest,
)
from airflow_tune_restore.restore.start import fresh_restore_id, plan_restore, read_plan
from airflow_tune_restore.restore.summary import printable
from airflow_tune_restore.runner.results import Start, prepare_results
from airflow_tune_restore.storage.memory import MemoryStore
from campaigns import hostile_inputs as inputs
from campaigns.guards import GuardedStore, OutsideError
from tests.support.experiments.built import STATE_NAME, make_row, make_state
from tests.support.records import leave_attempt, make_outcome

GOOD, BAD = "team/good", "team/bad"
RESTORE_ID = "r1"
ALL = ResumeFlags(finished=ResumeType.SKIP, unfinished=ResumeType.RESUME, errored=ResumeType.RESUME)
NOW = datetime(2026, 11, 25, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=2)

RECORDS: dict[str, Callable[[], str]] = {
    "plan": lambda: layout.plan_key(RESTORE_ID),
    "commit": lambda: layout.commit_key(RESTORE_ID),
    "claim": lambda: layout.lease_claim_key(1),
    "lease heartbeat": lambda: layout.lease_heartbeat_key(1),
    "release": lambda: layout.lease_release_key(1),
    "seed": lambda: layout.seed_key(RESTORE_ID, "bad"),
    "request": lambda: layout.request_key(RESTORE_ID, "bad", 1),
    "heartbeat": lambda: layout.heartbeat_key(RESTORE_ID, "bad", 1),
    "snapshot": lambda: layout.snapshot_key(RESTORE_ID, "bad", 1),
    "outcome": lambda: layout.outcome_key(RESTORE_ID, "bad", 1),
    "ledger": lambda: f"{layout.ROOT}/ledger.json",
}
"""Our own objects, which somebody who may write to the bucket can replace."""

Objects = dict[str, tuple[bytes, datetime]]


class Clock:
    """A clock that sleeping moves on, so that a minute of watching takes no time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        self.seconds += 0.001
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Lab:
    """What targets share: real experiments to spoil, and the input that is being tried."""

    scratch: str
    clock: Clock = field(default_factory=Clock)
    kept: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for function in (lease.acquire, attempts.wait_until_over, attempts.wait_until_all_over):
            function.__kwdefaults__.update(monotonic=self.clock.monotonic, sleep=self.clock.sleep)
        lease.refuse_if_alive.__kwdefaults__.update(monotonic=self.clock.monotonic)
        self.golden = _golden_objects()
        self.restored = _restored_objects(self.clock)
        store = MemoryStore(dict(self.golden), clock=self.clock.now)
        (self.good_report,) = scan(store)

    def keep(self, name: str, body: bytes) -> bytes:
        """Remember a part of the input."""
        self.kept[name] = body
        return body

    def store(self, objects: Objects) -> MemoryStore:
        return MemoryStore(objects, clock=self.clock.now)


def state(rng: random.Random, lab: Lab) -> None:
    """A state file: rows, details, and what a commit would make of it."""
    body = lab.keep("state.json", inputs.hostile_json(rng, rng.choice(_small_states())))
    step = rng.choice([1, 7, 100, 5000])
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    by_pieces = _parsed(lambda: parse_pieces(pieces, keep_ended=False))
    parsed = _parsed(lambda: parse_state(body))
    if parsed is None or by_pieces is None:
        assert parsed is by_pieces
        return
    assert [t.trial_id for t in by_pieces.trials] == [t.trial_id for t in parsed.trials]
    assert all(parsed.rows[trial_id] == row for trial_id, row in by_pieces.rows.items())
    for trial in parsed.trials:
        _touch(trial)
    again = parse_state(encode_state(parsed.rows.values(), parsed.runner, parsed.stats))
    assert again.rows == parsed.rows
    assert [t.trial_id for t in again.trials] == [t.trial_id for t in parsed.trials]


def _parsed(parse: Callable[[], State]) -> State | None:
    try:
        return parse()
    except MalformedStateError:
        return None


def _touch(trial: Any) -> None:
    with contextlib.suppress(TuneRestoreError):
        _ = trial.recorded_checkpoint
    _ = trial.config, trial.evaluated_params, trial.last_result, trial.resources, trial.is_finished


def a_pickle(rng: random.Random, lab: Lab) -> None:
    """A pickle: tuner.pkl, a searcher's state, a field of a row."""
    kind = rng.choice(("tuner", "searcher", "pickle"))
    body = lab.keep("tuner.pkl", inputs.hostile_pickle(rng, rng.choice(inputs.genuine()[kind])))
    try:
        read = read_pickle(body)
    except SymbolicError:
        return
    facts = tuner_facts(read)
    json.dumps([facts.metric, facts.scheduler, facts.wrappers, facts.trainable_name]).encode()
    left = samples_left(read, 3)
    assert left is None or 0 <= left < 2**63


def experiments(rng: random.Random, lab: Lab) -> None:
    """A hostile experiment beside a good one: the good one is found as ever."""
    objects = dict(lab.golden)
    bad = _spoil(rng, lab, rng.choice((BAD, BAD, _name(rng))))
    objects.update({key: value for key, value in bad.items() if key not in objects})
    if rng.random() < 0.3:
        index = lab.keep("index", _hostile_index(rng, lab.store(objects)))
        objects[layout.INDEX] = (index, lab.clock.now())
    store = GuardedStore(lab.store(objects), writable=False)
    reports = scan(store)
    good = [r for r in reports if r.experiment == lab.good_report.experiment]
    assert good == [lab.good_report], good
    output_of(
        lambda: output.print_reports(
            [(r, []) for r in reports], prefix="x", as_json=rng.random() < 0.5
        )
    )
    for key in {
        key.rpartition("/")[0] for key in bad if layout.is_state_file(key.rpartition("/")[2])
    }:
        if key.startswith(BAD):
            _plan_only(store.at(key))


def _hostile_index(rng: random.Random, store: MemoryStore) -> bytes:
    """Return what may stand in the place of an index: a whole one that lies of the bad one, or noise."""
    facts = Facts(state_file=STATE_NAME, trials={"RUNNING": 2}, unfinished_dirs=("a", "b"))
    lie = inputs.hostile_json(rng, msgspec.json.encode(facts))
    mark = fingerprint(store.at(BAD).list_dir()) or ""
    row = encode_row(build_row(BAD, mark, lie))
    return row if rng.random() < 0.7 else inputs.mutate_bytes(rng, row)


def _plan_only(store: GuardedStore) -> None:
    with contextlib.suppress(TuneRestoreError):
        examine(store)
    with contextlib.suppress(TuneRestoreError):
        experiment = read_experiment(store)
        read_checkpoint_choices(store, list(experiment.trials))
        plan = plan_restore(store, experiment, restore_id="preview", flags=ALL)
        again = RestorePlan.from_json(plan.to_json())
        assert again == plan
        output_of(lambda: output.print_plan(plan, as_json=False))
        output_of(lambda: output.print_plan(plan, as_json=True))


def a_restore(rng: random.Random, lab: Lab) -> None:
    """A whole restore of a hostile experiment, by a runner that may leave hostile things, too."""
    objects = {
        k: v
        for k, v in _spoil(rng, lab, BAD).items()
        if "/checkpoint_" not in k or rng.random() < 0.9
    }
    before = dict(objects)
    store = GuardedStore(lab.store(objects).at("team").at("bad"))
    options = DraftOptions(
        flags=ALL, strategy="per_trial", stale_after=timedelta(0), allow_scratch=rng.random() < 0.5
    )
    with contextlib.suppress(TuneRestoreError):
        draft = draft_restore(store, RESTORE_ID, options)
        if isinstance(draft, str):
            return
        plan, _ = start_draft(draft, options, holder="test", ttl_seconds=60)
        assert plan is not None
        assert read_plan(store, RESTORE_ID) == plan
        for trial in plan.to_run[:3]:
            _pretend_to_run(rng, lab, store, plan, trial.trial_id)
        _commit(store)
    for key, value in before.items():
        assert objects[key] == value, f"{key} was changed"


_DONE: dict[str, Any] = {"iteration": 6, "metrics": {"score": 1.5}}


def _pretend_to_run(
    rng: random.Random, lab: Lab, store: GuardedStore, plan: RestorePlan, trial_id: str
) -> None:
    request = attempts.claim_attempt(store, plan, trial_id, trainable="m:train")
    where = (plan.restore_id, trial_id, request.attempt)
    final = plan.trial(trial_id).final_trial_id
    snapshot = make_state([make_row(final, last_result={"training_iteration": 6})])
    done = make_outcome(request, final_trial_id=final, **_DONE).to_json()
    if rng.random() < 0.5:
        snapshot = lab.keep("snapshot.json", inputs.hostile_json(rng, snapshot))
    if rng.random() < 0.3:
        done = lab.keep("outcome.json", inputs.hostile_json(rng, done))
    store.put(layout.snapshot_key(*where), snapshot)
    store.put(layout.outcome_key(*where), done)


def _commit(store: GuardedStore) -> None:
    plan = read_plan(store, RESTORE_ID)
    base = read_base(store)
    summary = commit_restore(store, RESTORE_ID)
    output_of(lambda: output.print_summary(summary, experiment="x", as_json=False))
    output_of(lambda: output.print_summary(summary, experiment="x", as_json=True))
    if summary.state_file is not None:
        committed = read_base(store)
        assert committed.state_file.name == summary.state_file
        ran = {trial.trial_id for trial in plan.to_run}
        assert committed.state.rows.keys() == base.state.rows.keys()
        for trial_id, row in base.state.rows.items():
            assert trial_id in ran or committed.state.rows[trial_id] == row
    assert commit_restore(store, RESTORE_ID) == summary


def records(rng: random.Random, lab: Lab) -> None:
    """One of our own objects replaced, or one of an odd name beside them, and each way of reading it."""
    objects = dict(lab.restored)
    if rng.random() < 0.8:
        key = RECORDS[rng.choice(list(RECORDS))]()
        body = objects.get(key, (b'{"a": 1}', NOW))[0]
        objects[key] = (lab.keep(key, inputs.hostile_json(rng, body)), LONG_AGO)
    else:
        _add_odd_names(rng, lab, objects)
    if rng.random() < 0.5:
        objects.pop(layout.outcome_key(RESTORE_ID, "bad", 1))
    before = {key: value for key, value in objects.items() if not key.startswith(layout.ROOT)}
    store = GuardedStore(lab.store(objects))
    action = rng.choice(_READERS)
    lab.keep("action", action.__name__.encode())
    with contextlib.suppress(TuneRestoreError):
        action(store)
    assert {key: objects[key] for key in before} == before


def _add_odd_names(rng: random.Random, lab: Lab, objects: Objects) -> None:
    text = rng.choice(inputs.TEXTS)
    number = str(rng.choice(inputs.NUMBERS)) if rng.random() < 0.5 else text
    name = rng.choice((number, "9" * rng.choice((8, 18, 19, 20, 200, 5000)), text)).replace(
        "/", "_"
    )
    directory = layout.attempts_dir(RESTORE_ID, "bad")
    key = rng.choice(
        (
            f"{layout.LEASE}/{name}.claim.json",
            f"{layout.LEASE}/{name}.release.json",
            f"{layout.LEASE}/{name}.heartbeat.json",
            f"{directory}/{name}/request.json",
            f"{directory}/{name}/state.json",
            f"{layout.ROOT}/{name}/plan.json",
        )
    )
    lab.keep("key", key.encode("utf-8", "surrogatepass"))
    objects[key] = (b'{"restore_id": "r1"}', LONG_AGO)


def _acquire(store: GuardedStore) -> None:
    held = lease.acquire(store, restore_id="r2", holder="another", ttl_seconds=60)
    assert lease.check_held(store, "r2").epoch == held.epoch


def _settle(store: GuardedStore) -> None:
    settle_abandoned(store, restore_id="r2", holder="another")


def _next_night(store: GuardedStore) -> None:
    options = DraftOptions(flags=ALL, strategy="per_trial", stale_after=timedelta(0))
    draft = draft_restore(store, "r2", options)
    if not isinstance(draft, str):
        start_draft(draft, options, holder="test", ttl_seconds=60)


def _claim(store: GuardedStore) -> None:
    request = attempts.claim_attempt(
        store, read_plan(store, RESTORE_ID), "bad", trainable="m:train"
    )
    assert attempts.list_attempts(store, RESTORE_ID, "bad")[-1] == request.attempt


def _attempts(store: GuardedStore) -> None:
    for number in attempts.list_attempts(store, RESTORE_ID, "bad"):
        attempts.read_outcome(store, RESTORE_ID, "bad", number)
        attempts.wait_until_over(store, RESTORE_ID, "bad", number, patience_seconds=100)


def _request(store: GuardedStore) -> None:
    read_record(store, layout.request_key(RESTORE_ID, "bad", 1), RunnerRequest.from_json)


_READERS: tuple[Callable[[GuardedStore], object], ...] = (
    lambda store: read_plan(store, RESTORE_ID),
    lambda store: lease.check_held(store, RESTORE_ID),
    lambda store: lease.refuse_if_alive(store, "r2"),
    lambda store: attempts.read_outcome(store, RESTORE_ID, "bad"),
    lambda store: fresh_restore_id(store, RESTORE_ID),
    _acquire, _settle, _next_night, _claim, _attempts, _request, _commit, _commit,
)  # fmt: skip


def lines(rng: random.Random, lab: Lab) -> None:
    """A line of a runner's output, as the task's log shows it."""
    good = RunnerProgress(trial_id="t", iteration=3, metrics={"score": 1.5, "loss": 0.1}).to_json()
    body = inputs.hostile_json(rng, good).decode(
        "utf-8", rng.choice(("replace", "surrogateescape"))
    )
    line = rng.choice((PROGRESS_PREFIX + body, body, PROGRESS_PREFIX + rng.choice(inputs.TEXTS)))
    lab.keep("line", line.encode("utf-8", "surrogatepass"))
    RunnerProgress.from_line(line)
    _assert_shown(describe_line(line, rng.choice(("score", None))))


def shown(rng: random.Random, lab: Lab) -> None:
    """Foreign text in reports, plans, summaries and errors."""
    texts = [rng.choice(inputs.TEXTS) for _ in range(4)]
    lab.keep("texts", json.dumps(texts).encode())
    report = ExperimentReport(
        experiment=f"s3://b/{texts[0]}", name=texts[0], health=Health.UNREADABLE, reason=texts[1],
        trials={texts[2]: 1}, state_file=texts[3], last_write=None, samples_left=None,
        warnings=(texts[1],), evidence=(Sign(name="restore at work", found=texts[3]),),
    )  # fmt: skip
    for as_json in (False, True):
        output_of(
            lambda as_json=as_json: output.print_reports(
                [(report, [texts[0]])], prefix="x", as_json=as_json, explain=True
            )
        )
    output_of(lambda: output.print_error(TuneRestoreError("\n".join(texts))))
    _assert_shown(printable(" ".join(texts)))


def names(rng: random.Random, lab: Lab) -> None:
    """Keys made of foreign names stay inside, and no two names share one."""
    first, second = _name(rng), _name(rng)
    lab.keep("names", json.dumps([first, second]).encode())
    for name in (first, second):
        key = layout.seed_key(rng.choice(("r1", first)), name)
        parts = key.split("/")
        # the reserved one, which a state and a plan refuse as a trial's id, has a place of its own
        assert len(parts) == (4 if name == layout.EVERY_TRIAL else 5), key
        assert key.isascii()
        assert not {"", ".", ".."} & set(parts), key
    assert (layout.segment(first) == layout.segment(second)) == (first == second)


def _name(rng: random.Random) -> str:
    parts = [
        rng.choice((*inputs.TEXTS, "a", "A", "%41", "%2541", "..", "%2E", "."))
        for _ in range(rng.choice((1, 1, 2)))
    ]
    return "".join(parts)


def rows(rng: random.Random, lab: Lab) -> None:
    """The result rows of a trial, which a runner trims."""
    body = lab.keep("result.json", inputs.hostile_json(rng, rng.choice(inputs.genuine()["result"])))
    key = f"{layout.trial_dir(RESTORE_ID, 'bad')}/start-d.json"
    objects: Objects = {
        "d/result.json": (body, NOW),
        "d/progress.csv": (inputs.mutate_bytes(rng, _CSV), NOW),
    }
    if rng.random() < 0.3:
        objects[key] = (
            lab.keep(
                "start.json", inputs.hostile_json(rng, b'{"result.json": 1, "progress.csv": 1}')
            ),
            NOW,
        )
    request = RunnerRequest(
        experiment="x", restore_id=RESTORE_ID, trial_id="bad", attempt=1, trainable="m:t",
        trainable_name="t", action="resume", trim_results=rng.random() < 0.5,
    )  # fmt: skip
    with contextlib.suppress(TuneRestoreError):
        start = rng.choice((None, Start("checkpoint_000001", None), Start("checkpoint_000001", 3)))
        prepare_results(_RunnerStore(lab.store(objects)), request, "d", start)


class _RunnerStore(GuardedStore):
    """A runner may rewrite the rows of its own trial."""

    def put(self, key: str, body: bytes) -> None:
        if key in ("d/result.json", "d/progress.csv"):
            self._inner.put(key, body)
        else:
            super().put(key, body)


_CSV = b'training_iteration,score\r\n1,2\r\n2,"a\nb"\r\n3,6\r\n'

TARGETS: dict[str, tuple[Callable[[random.Random, Lab], None], float]] = {
    "state": (state, 30),
    "pickle": (a_pickle, 30),
    "experiments": (experiments, 3),
    "restore": (a_restore, 3),
    "records": (records, 14),
    "lines": (lines, 8),
    "shown": (shown, 3),
    "names": (names, 5),
    "rows": (rows, 4),
}
"""Each target, and how often it is chosen."""


def output_of(write: Callable[[], None]) -> str:
    """Return what a command prints, and check that a terminal could show it."""
    made = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(made), contextlib.redirect_stderr(made):
        write()
    text = made.buffer.getvalue().decode()  # type: ignore[attr-defined]
    for line in text.split("\n"):
        _assert_shown(line, folds=text.startswith(("{", "[\n")))  # JSON is for machines
    return text


def _assert_shown(text: str, *, folds: bool = False) -> None:
    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert not odd, f"shown to a user: {odd[:5]} in {text[:100]!r}"
    assert folds or not re.search("::(end)?group::", text), "would fold an Airflow log"


def _spoil(rng: random.Random, lab: Lab, place: str) -> Objects:
    """Return a copy of the golden experiment at `place`, some of its files hostile."""
    objects = {place + key.removeprefix(GOOD): value for key, value in lab.golden.items()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        in_root = rng.random() < 0.7  # the state, tuner.pkl and the searcher's state
        files = [key for key in objects if "/checkpoint_" not in key]
        key = rng.choice([key for key in files if key.count("/") == 2 or not in_root] or files)
        body = objects[key][0]
        pickled = key.endswith(".pkl") or "variant" in key
        made = (inputs.hostile_pickle if pickled else inputs.hostile_json)(rng, body)
        if rng.random() < 0.1:
            del objects[key]
            key = key.rpartition("/")[0] + "/" + (_name(rng) or "x")
        objects[key] = (lab.keep(key, made), LONG_AGO)
    return objects


def _golden_objects() -> Objects:
    root = inputs.EXPERIMENTS[-1]
    return {
        f"{GOOD}/{path.relative_to(root).as_posix()}": (path.read_bytes(), LONG_AGO)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _small_states() -> tuple[bytes, ...]:
    """Return the genuine states, and ones with two rows: a mutation hits something sooner."""
    if not _SMALL:
        for body in inputs.genuine()["state"]:
            document = json.loads(body)
            document["trial_data"] = document["trial_data"][1:3]
            _SMALL.extend((json.dumps(document).encode(),) * 3 + (body,))
    return tuple(_SMALL)


_SMALL: list[bytes] = []


def _restored_objects(clock: Clock) -> Objects:
    """Return an experiment in the middle of a restore: one attempt has ended, one has not begun."""
    objects: Objects = {}
    store = MemoryStore(objects, clock=lambda: LONG_AGO)
    rows = [
        make_row("done", last_result={"training_iteration": 4, "score": 8}, last_result_time=4.0),
        make_row("bad", status="ERROR", last_result={"training_iteration": 2}, last_result_time=3.0),
        make_row("hung", status="RUNNING", last_result={"training_iteration": 1}, last_result_time=2.0),
    ]  # fmt: skip
    store.put(STATE_NAME, make_state(rows))
    options = DraftOptions(flags=ALL, strategy="per_trial", stale_after=timedelta(0))
    draft = draft_restore(store, RESTORE_ID, options)
    assert not isinstance(draft, str)
    plan, _ = start_draft(draft, options, holder="test", ttl_seconds=60)
    assert plan is not None
    finished = make_row("bad", last_result={"training_iteration": 6})
    request = leave_attempt(store, plan, "bad", finished, **_DONE)
    key = layout.heartbeat_key(RESTORE_ID, "bad", request.attempt)
    store.put(key, b'{"count": 1, "pid": 1}')
    done = MemoryStore(dict(objects), clock=clock.now)
    commit_restore(done, RESTORE_ID)
    record = json.loads(done.get(layout.commit_key(RESTORE_ID)))
    store.put(layout.commit_key(RESTORE_ID), json.dumps({**record, "is_done": False}).encode())
    return objects


__all__ = ["TARGETS", "KeyNotFoundError", "Lab", "OutsideError"]
