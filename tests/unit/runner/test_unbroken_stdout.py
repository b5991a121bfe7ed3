"""What a runner prints when nobody reads it any more."""

import subprocess
import sys

PRINTS = """
import logging, sys
from airflow_tune_restore.runner import unbroken_stdout
unbroken_stdout.keep_open()
logging.basicConfig()
print("first", flush=True)
sys.stdin.read()  # until the reader is gone
for number in range(2000):
    print("a line that nobody reads", number, flush=True)
logging.warning("nor this one")
print("nor this one", file=sys.stderr)
open(sys.argv[1], "w").write("it went on")
"""


def test_a_killed_reader_does_not_end_what_it_read(tmp_path):
    went_on = tmp_path / "went_on"
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS, str(went_on)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait() == 0
    assert went_on.read_text() == "it went on"


def test_what_is_read_arrives_as_it_was_printed():
    code = (
        "from airflow_tune_restore.runner import unbroken_stdout\n"
        "unbroken_stdout.keep_open(); print('ä\\ud800')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.stdout, done.stderr) == ("ä?\n".encode(), b"")
