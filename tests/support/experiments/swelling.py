"""Files that become far more in memory than they are on a disk, and what reading each of them takes.

    python -m tests.support.experiments.swelling 32 [name …]

Makes each of that many MiB, reads it, and prints a line: its name, MiB of memory at the peak beside what
the process held before, seconds of the processor, and what came of it.
"""

import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.state import SMALL_ROW_BYTES
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.records import read_record
from airflow_tune_restore.restore.commit_record import read_commit_record
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.local import LocalStore
from tests.support.experiments.built import STATE_NAME, make_row

MIB = 1024 * 1024
CHUNK = 256 * 1024

Filler = Callable[[int], Iterator[bytes]]


def again(text: str) -> Filler:
    """Fill with one text."""
    piece = text.encode() * (CHUNK // len(text))
    return lambda size: repeat(piece, size // len(piece))


def numbered(template: str) -> Filler:
    """Fill with a text that holds another number each time."""

    def fill(size: int) -> Iterator[bytes]:
        numbers, made = count(), 0
        while made < size:
            piece = "".join(template % next(numbers) for _ in range(4096)).encode()
            made += len(piece)
            yield piece

    return fill


LISTS, DICTS, TEXTS, NUMBERS, OBJECTS, KEYS, WIDE, BACKSLASHES = (
    again("[],"), again("{},"), again('"",'), again("1.5,"), again('{"a":0},'),
    numbered('"%d":0,'), again("\N{PERFORMING ARTS}"), again("\\\\"),
)  # fmt: skip
FILLERS = {"lists": LISTS, "dicts": DICTS, "texts": TEXTS, "numbers": NUMBERS, "objects": OBJECTS}


def around(before: str, filler: Filler, after: str) -> Filler:
    def fill(size: int) -> Iterator[bytes]:
        yield before.encode()
        yield from filler(size)
        yield after.encode()

    return fill


def escaped(filler: Filler) -> Filler:
    """Fill what stands inside a JSON text."""
    return lambda size: (
        json.dumps(p.decode(), ensure_ascii=False)[1:-1].encode() for p in filler(size)
    )


def cut_up(filler: Filler, each: int) -> Filler:
    """Fill with many that are full of the same, of a given size."""
    return lambda size: (piece for _ in range(max(1, size // each)) for piece in filler(each))


GOOD = json.dumps(make_row("good", status="ERROR", checkpoint=True))
FRAME = ', "runner_data": {}, "stats": {}}'


def rows(filler: Filler) -> Filler:
    return around('{"trial_data": [', filler, f'{GOOD}], "runner_data": {{}}, "stats": {{}}}}')


def trial_of(field: str, filler: Filler, end: str, *, run: str = "{}") -> Filler:
    """Fill one field of one row; `field` begins its value, `end` ends it."""
    head = '{"trial_id": "bad", "status": "TERMINATED", "trainable_name": "x", '
    return around(
        f'["{escape(head + field)}', escaped(filler), f'{escape(end + "}")}", "{escape(run)}"], '
    )


def run_of(field: str, filler: Filler, end: str, *, criterion: str = "{}") -> Filler:
    head = {"trial_id": "bad", "status": "TERMINATED", "trainable_name": "x"}
    trial = json.dumps(head)[:-1] + f', "stopping_criterion": {criterion}}}'
    return around(
        f'["{escape(trial)}", "{escape("{" + field)}', escaped(filler), f'{escape(end + "}")}"], '
    )


def escape(text: str) -> str:
    return json.dumps(text)[1:-1]


DONE = '{"last_result": {"done": true}}'
MOST_LISTS, MOST_KEYS, MOST_BYTES = 2_900_000, 10_000_000, 16_000_000
"""Sizes of documents that are just decoded: lists and keys by their number, texts by their bytes."""

STATES: dict[str, Filler] = {
    **{f"a file of {name}": around("[", filler, "0]") for name, filler in FILLERS.items()},
    **{f"rows that are {name}": rows(filler) for name, filler in FILLERS.items()},
    **{
        f"runner_data of {name}": around(
            f'{{"trial_data": [{GOOD}], "runner_data": {{"x": [', filler, '0]}, "stats": {}}'
        )
        for name, filler in FILLERS.items()
    },
    "runner_data of keys": around(
        f'{{"trial_data": [{GOOD}], "runner_data": {{', KEYS, '"x": 0}, "stats": {}}'
    ),
    "runner_data before the rows": around(
        '{"stats": {}, "runner_data": {"x": [', LISTS, f'0]}}, "trial_data": [{GOOD}]}}'
    ),
    "runner_data of wide text": around(
        f'{{"trial_data": [{GOOD}], "runner_data": {{"x": "', WIDE, '"}, "stats": {}}'
    ),
    "brackets": again("["),
    "tiny rows": rows(again('["{}", "{}"], ')),
    "tiny rows without blanks": rows(again('["",""],')),
    "tiny rows in another order": around(
        '{"stats": {}, "runner_data": {}, "trial_data": [', again('["{}", "{}"], '), f"{GOOD}]}}"
    ),
    "many trials": rows(
        numbered(
            r'["{\"trial_id\": \"%d\", \"status\": \"ERROR\", \"trainable_name\": \"x\"}", "{}"], '
        )
    ),
    "rows that are just not small": rows(
        numbered(
            r'["{\"trial_id\": \"%d\", \"status\": \"ERROR\", \"trainable_name\": \"x\", '
            rf'\"experiment_tag\": \"{"x" * SMALL_ROW_BYTES}\"}}", "{{}}"], '
        )
    ),
    **{
        f"one config of {name}": rows(trial_of('"config": [', filler, "0]"))
        for name, filler in FILLERS.items()
    },
    "one config of lists and a NaN": rows(trial_of('"config": [', LISTS, "NaN]")),
    "one wide tag": rows(trial_of('"experiment_tag": "', WIDE, '"')),
    "wide tags": rows(cut_up(trial_of('"experiment_tag": "', WIDE, '"'), MOST_BYTES)),
    "wide names": rows(cut_up(trial_of('"trainable_name": "', WIDE, '"'), MOST_BYTES)),
    "wide ids": rows(cut_up(trial_of('"trial_id": "', WIDE, '"'), MOST_BYTES)),
    "ids of backslashes": rows(cut_up(trial_of('"trial_id": "', BACKSLASHES, '"'), MOST_BYTES)),
    "done, told by a long row": rows(run_of('"last_result": {"done": true}, "x": "', WIDE, '"')),
}
"""What an experiment state may be full of."""

CROWDED: dict[str, Filler] = {
    "configs of lists and a NaN": rows(cut_up(trial_of('"config": [', LISTS, "NaN]"), MOST_LISTS)),
    "configs of keys and a NaN": rows(
        cut_up(trial_of('"config": {', KEYS, '"x": NaN}'), MOST_KEYS)
    ),
    "statuses of lists": rows(cut_up(trial_of('"status": [', LISTS, "0]"), MOST_LISTS)),
    "criteria of keys": rows(
        cut_up(trial_of('"stopping_criterion": {', KEYS, '"x": 0}', run=DONE), MOST_KEYS)
    ),
    "results of keys": rows(
        cut_up(
            run_of('"last_result": {"done": true, ', KEYS, '"x": NaN}', criterion='{"x": 1}'),
            MOST_KEYS,
        )
    ),
    "results of lists": rows(
        cut_up(run_of('"last_result": {"training_iteration": [', LISTS, "0]}"), MOST_LISTS)
    ),
    "checkpoints of lists": rows(
        cut_up(run_of('"checkpoint_manager": [', LISTS, "0]"), MOST_LISTS)
    ),
}
"""The same, of documents that are just small enough to be decoded."""

NAMED = '{"checkpoint_dir_name": "checkpoint_000000", "training_iteration": 7}\n'

RESULTS: dict[str, Filler] = {
    "one line": around(NAMED + '{"checkpoint_dir_name": [', LISTS, "0]}\n"),
    "one line, ours or not": around(NAMED + '{"x": [', LISTS, "0]}\n"),
    "lines of lists and a NaN": around(
        NAMED,
        cut_up(
            around('{"checkpoint_dir_name": "checkpoint_000001", "x": [', LISTS, "NaN]}\n"),
            MOST_LISTS,
        ),
        "",
    ),
    "lines of wide text": around(
        NAMED, cut_up(around('{"checkpoint_dir_name": "', WIDE, '"}\n'), MOST_BYTES), ""
    ),
    "empty lines": around(NAMED, again("\n"), ""),
    "many names": around(NAMED, numbered('{"checkpoint_dir_name": "%d"}\n'), ""),
}
"""What rows of results may be full of; the first row is a good one."""

RECORDS: dict[str, tuple[str, Filler]] = {
    "a ledger of lists": (layout.LEDGER, around('{"trials": {}, "x": [', LISTS, "0]}")),
    "a ledger of trials": (
        layout.LEDGER,
        around('{"trials": {', numbered('"%d":{},'), '"x": {}}}'),
    ),
    "a plan of warnings": (
        layout.plan_key("r"),
        around('{"warnings": [', numbered('"%d",'), '""]}'),
    ),
    "a plan of attempts": (
        layout.commit_key("r"),
        around('{"state_file": "", "start_time": 0, "attempts": {', KEYS, '"x": 0}}'),
    ),
}
"""What records of ours may be full of."""


def read_state_of(directory: Path, filler: Filler, size: int) -> str:
    write(directory / STATE_NAME, filler, size)
    start_measuring()
    experiment = read_experiment(LocalStore(directory))
    read_checkpoint_choices(LocalStore(directory), list(experiment.trials))
    usable = [trial.trial_id for trial in experiment.trials if not trial.unusable]
    assert "good" in usable
    return f"{len(experiment.trials)} trials, {len(usable)} of them usable"


def read_results_of(directory: Path, filler: Filler, size: int) -> str:
    write(directory / STATE_NAME, rows(lambda _size: iter(())), 0)
    trial_dir = directory / "dir_good"
    for name in ("checkpoint_000000", "checkpoint_000002"):
        (trial_dir / name).mkdir(parents=True)
        (trial_dir / name / "a").write_text("a")
    write(trial_dir / layout.RESULT_FILE, filler, size)
    experiment = read_experiment(LocalStore(directory))
    start_measuring()
    choice = read_checkpoint_choices(LocalStore(directory), list(experiment.trials))["good"]
    assert (choice.name, choice.iteration) == ("checkpoint_000000", 7), choice
    return choice.reason


def read_record_of(directory: Path, key: str, filler: Filler, size: int) -> str:
    path = directory / key
    path.parent.mkdir(parents=True)
    write(path, filler, size)
    store = LocalStore(directory)
    start_measuring()
    if key == layout.LEDGER:
        ledger, warning = read_ledger(store)
        return warning or f"{len(ledger.trials)} trials"
    if key == layout.commit_key("r"):
        return str(read_commit_record(store, "r"))[:80]
    plan = read_record(store, key, RestorePlan.from_json, max_bytes=layout.MAX_PLAN_BYTES)
    return f"{len(plan.trials)} trials"


def write(path: Path, filler: Filler, size: int) -> None:
    with path.open("wb") as file:
        file.writelines(filler(size))


_before = {"MiB": 0.0, "seconds": 0.0}


def start_measuring() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    _before.update(MiB=memory("VmRSS"), seconds=time.process_time())


def memory(name: str) -> float:
    """Return MiB of this process: VmRSS, what it holds; VmHWM, the peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def main(size: int, names: list[str]) -> None:
    reads: dict[str, Callable[[Path], str]] = {
        **{n: lambda d, f=f: read_state_of(d, f, size) for n, f in (STATES | CROWDED).items()},
        **{n: lambda d, f=f: read_results_of(d, f, size) for n, f in RESULTS.items()},
        **{n: lambda d, k=k, f=f: read_record_of(d, k, f, size) for n, (k, f) in RECORDS.items()},
    }
    for name, read in reads.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                came = read(Path(scratch))
            except TuneRestoreError as error:
                came = f"refused: {error}"
            line = {
                "name": name,
                "peak_mib": round(memory("VmHWM") - _before["MiB"]),
                "seconds": round(time.process_time() - _before["seconds"], 1),
                "came": came[:200],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) * MIB, sys.argv[2:])
