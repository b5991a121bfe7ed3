"""Failed sweeps as Ray's users bring them back: `Tuner.restore(...).fit()`."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support import FAILED, ROOT
from tests.support.experiments.failed import TRAINABLES, environment
from tests.support.experiments.sweeps import DAGS, copy_sweep
from tests.support.waiting import PATIENCE_SECONDS

KINDS = ("errored", "asha_class", "registered")
"""Those of `tests/golden/failed` that are restored, after the killed example sweep."""

SAME = ("trial_id", "dir", "config", "status", "last_result", "metric", "tag")
"""What is equal of each trial, whoever restored it, and wherever."""


class ByHand:
    """Copies that are being restored.

    Args:
        directory: That of the killed example sweep; those of `KINDS` lie beside it.
        restore: The process that is at it.
        log: What that prints.
    """

    def __init__(self, directory: Path, restore: "subprocess.Popen[bytes]", log: Path) -> None:
        self.directory = directory
        self.restore = restore
        self.log = log

    def assert_equal(self, url: str, env: Mapping[str, str]) -> None:
        """Whether the killed sweep came to the same end when we restored it."""
        ours, theirs = self.describe(url, str(self.directory), env=env)
        assert len(ours["trials"]) == len(theirs["trials"]) == 4  # noqa: PLR2004
        for mine, his in zip(ours["trials"], theirs["trials"], strict=True):
            for trial in (mine, his):  # a trial that was stopped numbers its checkpoints on
                trial["last_result"].pop("checkpoint_dir_name")
            for name in SAME:
                assert mine[name] == his[name], name
            numbers = [row["training_iteration"] for row in mine["rows"]]
            assert sorted(set(numbers)) == [1, 2, 3, 4, 5, 6]

    def describe(self, *urls: str, env: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return what Ray reads of experiments, when all copies have been restored."""
        assert self.restore.wait(PATIENCE_SECONDS) == 0, self.log.read_text()[-6000:]
        command = _python("describe", *urls)
        done = subprocess.run(**command, env=_environment(**env), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-6000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("DESCRIBED ")]
        described: list[dict[str, Any]] = json.loads(line.removeprefix("DESCRIBED "))
        return described


@contextlib.contextmanager
def restored_by_hand(scratch: Path) -> Iterator[ByHand]:
    """Begin to restore copies, and let it go on meanwhile."""
    experiment = copy_sweep("killed", scratch / "by_hand")
    trainables = {str(experiment): "example_sweep:train"}
    for kind in KINDS:
        trainables[shutil.copytree(FAILED / kind, str(scratch / kind))] = TRAINABLES[kind]
    flags = {"resume_errored": True}
    cases = scratch / "cases.json"
    cases.write_text(
        json.dumps([{"uri": u, "trainable": t, "flags": flags} for u, t in trainables.items()])
    )
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
    env = environment(EXAMPLE_SWEEP_REPAIRED="1", TUNE_TEST_HEALED="1", **extra)
    env["PYTHONPATH"] += os.pathsep + str(DAGS)  # where the sweep's code can be imported
    return env
