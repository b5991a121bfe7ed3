"""Whatever a file holds, reading it takes memory and time in proportion to its bytes."""

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from airflow_tune_restore.protocol import bounded_json
from tests.support import ROOT
from tests.support.experiments.swelling import CROWDED, RECORDS, RESULTS, STATES
from tests.support.waiting import PATIENCE_SECONDS

SECONDS_A_MIB = 1.5
"""Of the processor; the slowest takes a third of a second on an idle machine."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are reset in /proc")
@pytest.mark.parametrize(
    ("size_mib", "kind"),
    [
        pytest.param(32, STATES, id="states"),
        # their peak is that of one document, however many there are
        pytest.param(11, CROWDED, id="crowded states"),
        pytest.param(32, RESULTS, id="results"),
        pytest.param(32, RECORDS, id="records"),
    ],
)
def test_a_file_takes_no_more_than_three_times_its_bytes_and_200_mib(size_mib, kind):
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.experiments.swelling", str(size_mib), *kind],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    read = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(read) == set(kind)
    assert [n for n, line in read.items() if line["peak_mib"] > 3 * size_mib + 200] == [], read
    assert [n for n, line in read.items() if line["seconds"] > SECONDS_A_MIB * size_mib] == [], read


@pytest.mark.parametrize("text", ["[],", "{},", "0,", '"",', '{"a":0},', "[[[[", '"a":'])
def test_no_fewer_values_are_counted_than_there_are(text):
    many = text * 1000
    bounded_json.check_values(many, 3 * len(many))
    for body in (many, many.encode()):
        with pytest.raises(ValueError, match="may hold"):
            bounded_json.check_values(body, 999)


def test_a_document_that_is_too_large_is_not_decoded():
    text = "[" + " " * bounded_json.MAX_DOCUMENT_BYTES + "]"
    with pytest.raises(ValueError, match="bytes; at most"):
        bounded_json.load(text)


def test_a_million_numbers_are_not_too_many():
    numbers = [0.5] * 1_000_000 + [float("inf")]
    assert bounded_json.load(json.dumps(numbers)) == numbers


def test_large_documents_are_decoded_one_at_a_time():
    entered = {size: threading.Event() for size in (1000, 10**6)}

    def decode(size):
        with bounded_json.alone(size):
            entered[size].set()

    threads = [threading.Thread(target=decode, args=(size,)) for size in entered]
    with bounded_json.alone(10**7):
        for thread in threads:
            thread.start()
        assert entered[1000].wait(PATIENCE_SECONDS)
        assert not entered[10**6].wait(0.2)
    assert entered[10**6].wait(PATIENCE_SECONDS)
    for thread in threads:
        thread.join()


def test_the_collector_is_as_it_was_before_a_large_document():
    was_enabled = gc.isenabled()  # the shell switches it off, and its tests run here, too
    for before in (gc.enable, gc.disable):
        before()
        expected = gc.isenabled()
        with bounded_json.alone(10**7):
            with bounded_json.alone(10**7):
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() is expected
    (gc.enable if was_enabled else gc.disable)()
