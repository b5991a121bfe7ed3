"""The short form of the hostile campaign; `python -m campaigns.hostile` is the long one."""

import contextlib
import inspect
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.version_compat import AirflowException
from campaigns import hostile, hostile_limits, hostile_records
from campaigns.guards import GuardedStore
from campaigns.hostile_disks import snapshot
from campaigns.hostile_lab import (
    LONGEST_WAIT_SECONDS,
    SECRET,
    Clock,
    Lab,
    WaitedTooLongError,
    assert_shown,
)
from campaigns.hostile_targets import TARGETS

SHORT_INPUTS, SHORT_SEED = 1500, 7
ODD_INPUTS = 100
MOST_MIB = 640
"""What reading hostile input may take beside the interpreter: one state file of 512 MiB, and change."""

LIMIT_BYTES, LIMIT_CASES = 16 * 1024**2, 10
"""A decoder that takes 25 times what it reads takes 400 MiB of 16; allowed are three times, and 200."""


def test_hostile_inputs_end_in_values_or_our_errors(tmp_path):
    report = hostile.run(SHORT_INPUTS, SHORT_SEED, processes=1, save_to=tmp_path)
    assert report.failures == []
    assert report.tried == SHORT_INPUTS
    assert min(report.by_target[name] for name in TARGETS) >= 3
    assert report.peak_mib - report.start_mib < MOST_MIB


def test_files_just_under_a_limit_take_memory_in_proportion():
    report = hostile.limits(LIMIT_BYTES, share=LIMIT_CASES, seed=SHORT_SEED)
    assert report.failures == []
    assert report.tried == LIMIT_CASES


def test_what_takes_more_than_its_share_of_memory_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_limits, "MOST_MIB", -1000)
    report = hostile.limits(LIMIT_BYTES, share=1)
    assert len(report.failures) == 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    with contextlib.closing(Lab(tmp_path_factory.mktemp("lab").as_posix())) as made:
        yield made


def test_every_key_that_can_be_built_is_a_record():
    """A new kind of record is tried without a word here; a new argument or directory needs one there."""
    built = [n for n, f in vars(layout).items() if inspect.isfunction(f) and n.endswith("_key")]
    for name in built:
        for unit in hostile_records.UNITS:
            assert hostile_records.build_key(getattr(layout, name), unit) in (
                hostile_records.RECORDS.values()
            ), name
    directories = {
        n for n, f in vars(layout).items() if inspect.isfunction(f) and n.endswith("_dir")
    }
    assert directories == hostile_records.FILES.keys()
    assert {layout.LEDGER, layout.INDEX} <= set(hostile_records.RECORDS.values())


def test_every_kind_of_record_is_read_by_somebody(lab):
    touched: set[str] = set()
    bases = (lab.restored, lab.whole)
    lost = [{k: v for k, v in base.items() if not k.endswith("outcome.json")} for base in bases]
    for base in (*bases, *lost):
        for read in hostile_records.READERS:
            lab.begin()
            store = GuardedStore(lab.store(dict(base)))
            with contextlib.suppress(TuneRestoreError, AirflowException):
                read(lab, store)
            touched |= store.touched
    unread = {
        kind
        for kind, key in hostile_records.RECORDS.items()
        if key not in touched and key != layout.INDEX  # which the target `experiments` reads
    }
    assert unread <= hostile_records.READ_BY_NOBODY


def test_whoever_waits_for_too_long_is_noticed():
    clock = Clock()
    clock.sleep(LONGEST_WAIT_SECONDS)
    with pytest.raises(WaitedTooLongError):
        clock.sleep(1.0)


@pytest.mark.parametrize("text", ["a\x1b[31m", "::group::x", f"it says {SECRET}", "x" * 10**6])
def test_what_must_not_be_shown_is_noticed(text):
    with pytest.raises(AssertionError):
        assert_shown(text)


def test_what_is_written_outside_is_noticed(tmp_path):
    (tmp_path / "secret").write_text("a")
    before = snapshot(tmp_path)
    (tmp_path / "secret").write_text("b")
    assert snapshot(tmp_path) != before


def test_the_same_input_is_made_again(lab):
    made = []
    for _ in range(2):
        lab.begin()
        with contextlib.suppress(BaseException):
            TARGETS["records"][0](random.Random("7/3"), lab)
        made.append(dict(lab.kept))
    assert made[0] == made[1] != {}


def test_what_is_odd_but_genuine_is_read_as_ray_reads_it():
    report = hostile.odd_inputs(ODD_INPUTS, SHORT_SEED)
    assert report.failures == []
    assert report.by_target["read by Ray"] > ODD_INPUTS * 0.8  # or there was nothing to compare


@pytest.mark.parametrize("streamed", [False, True])
def test_a_gigabyte_in_the_place_of_a_small_file_is_refused(streamed):
    report = hostile.large_files(streamed=streamed)
    assert report.failures == []
    assert report.tried == len(hostile.LARGE_NAMES)
    # by its listing it is refused unread; a store that lies there is read up to the limit
    assert report.peak_mib - report.start_mib < (MOST_MIB if streamed else 64)


def test_the_tripwire_hears_what_a_pickle_would_do(tmp_path):
    """In a process of its own: an audit hook stays for good."""
    code = (
        "import os, pickle, sys\n"
        "from campaigns.guards import ExecutedError, Tripwire\n"
        "from campaigns.hostile_inputs import _bombs\n"
        "wire = Tripwire(sys.argv[1])\n"
        "bomb = _bombs()[0]\n"
        "with wire:\n"
        "    try:\n"
        "        pickle.loads(bomb)\n"
        "    except ExecutedError as error:\n"
        "        print('heard', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path.as_posix()], capture_output=True, text=True
    )
    assert done.stdout.startswith("heard "), done.stderr
