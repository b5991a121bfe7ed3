"""The launcher needs no Airflow; a log is shown line by line, each once, whatever a look returns."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.launch.kubernetes.container_log import ContainerLog, LogPosition

BEGAN = datetime(2026, 11, 24, 13, 51, 40, tzinfo=UTC)


def test_attempts_in_pods_do_not_import_airflow():
    code = (
        "import sys\n"
        "from airflow_tune_restore.launch.kubernetes import attempt_pod, launcher\n"
        "sys.exit(any(name.partition('.')[0] == 'airflow' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def look(position, lines):
    position.begin_look()
    log = ContainerLog(position.is_new)
    for at, text in lines:
        stamp = (BEGAN + timedelta(microseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        log.take(f"{stamp} {text}\n".encode())
    log.end()
    return [line.partition(" ")[2] for line in log.newest.take("there")]


@given(st.lists(st.integers(0, 8), max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_each_line_is_shown_once_however_often_it_is_read(times, ends):
    lines = [(at, f"line {n}") for n, at in enumerate(sorted(times))]
    position, shown = LogPosition(), []
    for end in [*sorted(ends), len(lines)]:
        # an API server returns whole seconds, so all lines of a time or none
        newest = shown and lines[len(shown) - 1][0]
        shown += look(position, [line for line in lines[:end] if not shown or line[0] >= newest])
    assert shown == [text for _, text in lines]
