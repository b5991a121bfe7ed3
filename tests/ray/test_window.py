"""The end of a window, for real runners: they pause by themselves, and the next restore goes on."""

import sys
from datetime import UTC, datetime, timedelta

from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_PAUSED
from tests.support.ray.real_restore import TRAINABLE_ENV, Restoring

EVERY = [1, 2, 3, 4, 5, 6]
SECONDS = 12
"""Long enough for most machines to reach iteration 4. Whatever was reached, it must be kept."""


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_trial_in_the_middle_of_a_long_iteration_is_paused_and_loses_nothing(copied, gate):
    """The gate is never opened: the iteration takes longer than any grace."""
    restoring = Restoring(copied("errored"), "errored", env=gate.env)
    ran = restoring.run(pause_at=in_seconds(SECONDS))
    assert ran.code == EXIT_PAUSED, ran.output
    assert (ran.outcome.result, ran.outcome.error_type) == ("paused", "Paused")
    assert "did not stop in time" not in ran.output
    reached = ran.outcome.iteration
    if ran.progress:  # else the machine was too slow for that
        assert "Pausing: the window of this restore has ended: saving a snapshot." in ran.output
        assert restoring.snapshot()[0]["status"] == "PAUSED"
        assert ran.progress[-1].iteration == reached
        assert restoring.iterations() == EVERY[:reached]

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == EVERY


def test_a_runner_that_starts_after_the_end_runs_nothing(copied):
    restoring = Restoring(copied("errored"), "errored")
    ran = restoring.run(pause_at=in_seconds(-1))
    assert (ran.code, ran.outcome.result, ran.progress) == (EXIT_PAUSED, "paused", [])
    assert "nothing was run" in ran.outcome.error


def test_a_driver_that_cannot_react_is_ended_after_the_grace(copied, tmp_path):
    """It hangs in an import, and no signal reaches it. The grace is shortened, and the rest is real."""
    (tmp_path / "hangs.py").write_text(
        "import signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})\n"
        "while True:\n    time.sleep(60)\n"
    )
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; from airflow_tune_restore.protocol import "
        "window; window.GRACE_SECONDS = 1.0; from airflow_tune_restore.runner.__main__ import main; "
        'sys.exit(main(sys.argv[3:]))\' "$@"\n'
    )
    python.chmod(0o755)
    path = {"PYTHONPATH": f"{tmp_path}"}
    restoring = Restoring(
        copied("errored"), "errored", python=python.as_posix(), env={**TRAINABLE_ENV, **path}
    )
    ran = restoring.run(pause_at=in_seconds(6), imports=["hangs"])
    assert (ran.code, ran.outcome.result) == (EXIT_PAUSED, "paused"), ran.output
    if "Pausing" not in ran.output:  # else a slow machine did not reach the import in time
        assert "This runner did not stop in time; it ends itself" in ran.output
        assert "the newest snapshot counts" in ran.outcome.error
