"""The killed example sweep as Ray's users bring it back: `Tuner.restore(...).fit()`."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.experiments.failed import environment
from tests.support.experiments.sweeps import DAGS, copy_sweep
from tests.support.waiting import PATIENCE_SECONDS

SAME = ("trial_id", "dir", "config", "status", "last_result", "metric", "tag")
"""What is equal of each trial, whoever restored it, and wherever."""


class ByHand:
    """A copy that is being restored.

    Args:
        directory: Where it lies.
        restore: The process that is at it.
        log: What that prints.
    """

    def __init__(self, directory: Path, restore: "subprocess.Popen[bytes]", log: Path) -> None:
        self.directory = directory
        self.restore = restore
        self.log = log

    def assert_equal(self, url: str, env: Mapping[str, str]) -> None:
        """Whether an experiment that we restored came to the same end."""
        assert self.restore.wait(PATIENCE_SECONDS) == 0, self.log.read_text()[-6000:]
        command = _python("describe", url, str(self.directory))
        done = subprocess.run(**command, env=_environment(**env), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-6000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("DESCRIBED ")]
        ours, theirs = json.loads(line.removeprefix("DESCRIBED "))
        assert len(ours["trials"]) == len(theirs["trials"]) == 4  # noqa: PLR2004
        for mine, his in zip(ours["trials"], theirs["trials"], strict=True):
            for trial in (mine, his):  # a trial that was stopped numbers its checkpoints on
                trial["last_result"].pop("checkpoint_dir_name")
            for name in SAME:
                assert mine[name] == his[name], name
            numbers = [row["training_iteration"] for row in mine["rows"]]
            assert sorted(set(numbers)) == [1, 2, 3, 4, 5, 6]


@contextlib.contextmanager
def restored_by_hand(scratch: Path) -> Iterator[ByHand]:
    """Begin to restore a copy, and let it go on meanwhile."""
    experiment = copy_sweep("killed", scratch / "by_hand")
    case = {"uri": str(experiment), "trainable": "example_sweep:train"}
    cases = scratch / "cases.json"
    cases.write_text(json.dumps([{**case, "flags": {"resume_errored": True}}]))
    log = scratch / "by_hand.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            **_python("restore", str(cases)),
            env=_environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield ByHand(experiment, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _python(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.ray.tuner_restore", *arguments]
    return {"args": command, "cwd": ROOT}


def _environment(**extra: str) -> dict[str, str]:
    env = environment(EXAMPLE_SWEEP_REPAIRED="1", **extra)
    env["PYTHONPATH"] += os.pathsep + str(DAGS)  # where the sweep's code can be imported
    return env
