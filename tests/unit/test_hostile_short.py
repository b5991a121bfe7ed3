"""The short form of the hostile campaign; `python -m campaigns.hostile` is the long one."""

import subprocess
import sys

import pytest

from campaigns import hostile

SHORT_INPUTS, SHORT_SEED = 2500, 7
ODD_INPUTS = 100
MOST_MIB = 640
"""What reading hostile input may take beside the interpreter: one state file of 512 MiB, and change."""


def test_hostile_inputs_end_in_values_or_our_errors(tmp_path):
    report = hostile.run(SHORT_INPUTS, SHORT_SEED, processes=1, save_to=tmp_path)
    assert report.failures == []
    assert report.tried == SHORT_INPUTS
    assert report.peak_mib - report.start_mib < MOST_MIB


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
