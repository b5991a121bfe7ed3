"""JSON of records, which threads of a new process read at the same moment; and how it is shown."""

import json
import math
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import airflow_tune_restore
from airflow_tune_restore.restore import record_json
from airflow_tune_restore.restore.prepare import preview_restore
from airflow_tune_restore.restore.prepared import PrepareOptions
from airflow_tune_restore.storage.local import LocalStore
from tests.support import FAILED

PROCESSES = 8
"""With types that the threads describe for the first time, half of them crashed (msgspec 0.22)."""

LATE = re.compile(
    r"msgspec\.json\.decode\((?!.*type=str)|^ +.*= msgspec\.json\.Decoder\(", re.MULTILINE
)

READ = """
import sys, threading
from pathlib import Path
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.recipe import Recipe

body = Path(sys.argv[1]).read_bytes()
barrier = threading.Barrier(8)

def read():
    barrier.wait()
    RestorePlan.from_json(body)
    Recipe.from_json(b'{"trainable": "m:train", "resume_config": {"errored": "resume"}}')

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_of_a_new_process_may_read_records_at_the_same_moment(tmp_path):
    options = PrepareOptions(stale_after=timedelta(0))
    plan, _ = preview_restore(LocalStore(FAILED / "asha"), options)
    (tmp_path / "plan.json").write_bytes(plan.to_json())
    for _ in range(PROCESSES):
        command = [sys.executable, "-c", READ, str(tmp_path / "plan.json")]
        subprocess.run(command, check=True, timeout=60)


def test_every_decoder_is_made_when_its_module_is_imported():
    """`msgspec.json.decode` describes a type in the thread that calls it first; a str needs no words."""
    home = Path(airflow_tune_restore.__path__[0])
    texts = {path.name: path.read_text() for path in home.rglob("*.py")}
    late = [
        name
        for name, text in texts.items()
        if re.search(
            r"msgspec\.json\.decode\((?!.*type=str)|^ +.*= msgspec\.json\.Decoder\(",
            text,
            re.MULTILINE,
        )
    ]
    assert late == []


texts = st.text(st.characters() | st.sampled_from('"\\/\x7f\ud800\udcff:'))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(plain)
def test_values_are_indented_as_json_indents_them(values):
    assert record_json.indented(values) == json.dumps(values, indent=1)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_json_is_not_written(number):
    with pytest.raises(ValueError, match="JSON"):
        record_json.indented([number])
