"""`tune-restore restore` as a process: its progress is read while it runs, and it gets signals."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES, environment
from tests.support.waiting import PATIENCE_SECONDS


class Shell:
    """A restore of an experiment of kind `errored`; `seen` holds what it has printed on stderr."""

    def __init__(self, experiment: str | Path, *options: str, **env: str) -> None:
        self.seen = ""
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "airflow_tune_restore.cli.app", "restore", str(experiment)),
                *("--trainable", TRAINABLES["errored"], "--resume-errored", *options),
            ],
            cwd=ROOT,
            env=environment(TUNE_TEST_HEALED="1", COLUMNS="160", **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell that runs the tests in the background has them ignore it, and all that they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def await_line(self, words: str) -> None:
        """Wait until it has printed these words on stderr."""
        while words not in self.seen:
            line = self.process.stderr.readline()
            assert line, self.seen
            self.seen += line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, out, self.seen + err
