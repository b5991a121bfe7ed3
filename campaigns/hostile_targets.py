"""Everything that is read back from storage, each as one function that is given hostile input.

A target draws its input from `rng`, keeps it with `lab.keep` (so that it can be saved), and reads it.
It may return, or raise one of our errors; anything else is a failure. Add a target to `TARGETS`. What
stands in our own records is in `hostile_records`, in a sweep's recipe in `hostile_recipes`, what lies on
disks in `hostile_disks`, what servers answer in `hostile_servers`, and what a whole night makes of it in
`hostile_nights`.
"""

import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.evidence import EvidenceRow
from airflow_tune_restore.experiments.examine import examine
from airflow_tune_restore.experiments.experiment import recorded_tuner, samples_left
from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.index import build_row, encode_row
from airflow_tune_restore.experiments.raw_row import MalformedStateError, checkpoint_fields
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.state import (
    KEEP_UNTERMINATED,
    State,
    encode_state,
    parse_pieces,
    parse_state,
)
from airflow_tune_restore.experiments.state_summary import StateSummary, fingerprint
from airflow_tune_restore.launch.log_lines import describe_line
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.pickle_fields import PickleFields
from airflow_tune_restore.protocol.pickle_reader import SymbolicError, read_pickle
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import PROGRESS_PREFIX, RunnerProgress, RunnerRequest
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.runner.tune.result_files import Start, prepare_results
from airflow_tune_restore.storage.memory import MemoryStore
from campaigns import hostile_inputs as inputs
from campaigns.guards import GuardedStore, RunnerStore
from campaigns.hostile_disks import disks
from campaigns.hostile_lab import (
    ALL,
    BAD,
    NOW,
    RESTORE_ID,
    Lab,
    Objects,
    any_name,
    assert_shown,
    output_of,
    spoil,
)
from campaigns.hostile_nights import a_restore, many_trials, nights, times
from campaigns.hostile_recipes import recipes
from campaigns.hostile_records import records
from campaigns.hostile_servers import api_servers, dashboards, triggerers
from tests.support.experiments.built import STATE_NAME
from tests.support.records import plan_night


def state(rng: random.Random, lab: Lab) -> None:
    """A state file: rows, details, and what a commit would make of it."""
    body = lab.keep("state.json", inputs.hostile_json(rng, rng.choice(_small_states())))
    step = rng.choice([1, 7, 100, 5000]) if len(body) < 10**6 else 5000
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    by_pieces = _parsed(lambda: parse_pieces(pieces, KEEP_UNTERMINATED))
    parsed = _parsed(lambda: parse_state(body))
    if parsed is None or by_pieces is None:
        assert parsed is by_pieces
        return
    assert [t.trial_id for t in by_pieces.trials] == [t.trial_id for t in parsed.trials]
    assert all(parsed.rows[trial_id] == row for trial_id, row in by_pieces.rows.items())
    fields = checkpoint_fields()
    for trial in parsed.trials:
        _touch(trial, fields)
    again = parse_state(encode_state(parsed.rows.values(), parsed.runner, parsed.stats))
    assert again.rows == parsed.rows
    assert [t.trial_id for t in again.trials] == [t.trial_id for t in parsed.trials]


def _parsed(parse: Callable[[], State]) -> State | None:
    try:
        return parse()
    except MalformedStateError:
        return None


def _touch(trial: Any, fields: PickleFields) -> None:
    with contextlib.suppress(TuneRestoreError):
        trial.recorded_checkpoint(fields)
    _ = trial.last_result, trial.resources, trial.is_finished


def a_pickle(rng: random.Random, lab: Lab) -> None:
    """A pickle: tuner.pkl, a searcher's state, a field of a row."""
    kind = rng.choice(("tuner", "searcher", "pickle"))
    body = lab.keep("tuner.pkl", inputs.hostile_pickle(rng, rng.choice(inputs.genuine()[kind])))
    try:
        read = read_pickle(body)
    except SymbolicError:
        return
    tuner = recorded_tuner(read)
    json.dumps([tuner.metric, tuner.scheduler, tuner.wrappers, tuner.trainable_name]).encode()
    left = samples_left(read, 3)
    assert left is None or 0 <= left < 2**63


def experiments(rng: random.Random, lab: Lab) -> None:
    """A hostile experiment beside a good one: the good one is found as ever."""
    objects = dict(lab.golden)
    bad = spoil(rng, lab, rng.choice((BAD, BAD, any_name(rng))))
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
    summary = StateSummary(state_file=STATE_NAME, trials={"RUNNING": 2}, unfinished_dirs=("a", "b"))
    lie = inputs.hostile_json(rng, msgspec.json.encode(summary))
    mark = fingerprint(store.at(BAD).list_dir()) or ""
    row = encode_row(build_row(BAD, mark, lie))
    return row if rng.random() < 0.7 else inputs.mutate_bytes(rng, row)


def _plan_only(store: GuardedStore) -> None:
    with contextlib.suppress(TuneRestoreError):
        examine(store)
    with contextlib.suppress(TuneRestoreError):
        experiment = read_experiment(store)
        read_checkpoint_choices(store, list(experiment.trials))
        plan = plan_night(store, flags=ALL)
        again = RestorePlan.from_json(plan.to_json())
        assert again == plan
        output_of(lambda: output.print_plan(plan, as_json=False))
        output_of(lambda: output.print_plan(plan, as_json=True))


def lines(rng: random.Random, lab: Lab) -> None:
    """A line of a runner's output, as the task's log shows it."""
    good = RunnerProgress(trial_id="t", iteration=3, metrics={"score": 1.5, "loss": 0.1}).to_json()
    body = inputs.hostile_json(rng, good).decode(
        "utf-8", rng.choice(("replace", "surrogateescape"))
    )
    line = rng.choice((PROGRESS_PREFIX + body, body, PROGRESS_PREFIX + rng.choice(inputs.TEXTS)))
    lab.keep("line", line.encode("utf-8", "surrogatepass"))
    RunnerProgress.from_line(line)
    assert_shown(describe_line(line, rng.choice(("score", None))))


def shown(rng: random.Random, lab: Lab) -> None:
    """Foreign text in reports, plans, summaries and errors."""
    texts = [rng.choice(inputs.TEXTS) for _ in range(4)]
    lab.keep("texts", json.dumps(texts).encode())
    report = ExperimentReport(
        experiment=f"s3://b/{texts[0]}", health=Health.UNREADABLE, reason=texts[1],
        trials={texts[2]: 1}, state_file=texts[3], last_write=None, samples_left=None,
        warnings=(texts[1],), evidence=(EvidenceRow(name="running restore", found=texts[3]),),
    )  # fmt: skip
    for as_json in (False, True):
        output_of(
            lambda as_json=as_json: output.print_reports(
                [(report, [texts[0]])], prefix="x", as_json=as_json, explain=True
            )
        )
    output_of(lambda: output.print_error(TuneRestoreError("\n".join(texts))))
    assert_shown(printable(" ".join(texts)))


def names(rng: random.Random, lab: Lab) -> None:
    """Keys made of foreign names stay inside, and no two names share one."""
    first, second = any_name(rng), any_name(rng)
    lab.keep("names", json.dumps([first, second]).encode())
    for name in (first, second):
        key = layout.seed_key(rng.choice(("r1", first)), name)
        parts = key.split("/")
        # the reserved one, which a state and a plan refuse as a trial's id, has a place of its own
        assert len(parts) == (4 if name == layout.WHOLE_EXPERIMENT else 5), key
        assert key.isascii()
        assert not {"", ".", ".."} & set(parts), key
    assert (layout.segment(first) == layout.segment(second)) == (first == second)


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
        prepare_results(RunnerStore(lab.store(objects)), request, "d", start)


_CSV = b'training_iteration,score\r\n1,2\r\n2,"a\nb"\r\n3,6\r\n'


def _small_states() -> tuple[bytes, ...]:
    """Return the genuine states, and ones with two rows: a mutation hits something sooner."""
    if not _SMALL:
        for body in inputs.genuine()["state"]:
            document = json.loads(body)
            document["trial_data"] = document["trial_data"][1:3]
            _SMALL.extend((json.dumps(document).encode(),) * 3 + (body,))
    return tuple(_SMALL)


_SMALL: list[bytes] = []

TARGETS: dict[str, tuple[Callable[[random.Random, Lab], None], float]] = {
    "state": (state, 28),
    "pickle": (a_pickle, 28),
    "records": (records, 17),
    "recipes": (recipes, 3),
    "lines": (lines, 7),
    "names": (names, 4),
    "rows": (rows, 4),
    "experiments": (experiments, 3),
    "restore": (a_restore, 2),
    "shown": (shown, 2),
    "times": (times, 1.5),
    "nights": (nights, 1.5),
    "many trials": (many_trials, 0.02),
    "disks": (disks, 1),
    "dashboards": (dashboards, 1),
    "triggerers": (triggerers, 0.5),
    "api servers": (api_servers, 0.5),
}
"""Each target, and how often it is chosen."""
