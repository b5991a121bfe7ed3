"""A runner that was frozen, as a machine may be, and thaws when another restore is done."""

import os
import signal
import time
from datetime import timedelta

from airflow_tune_restore.exceptions import LeaseHeldError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.protocol.request import EXIT_FENCED, EXIT_FINISHED
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.prepare import prepare_restore
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.start import start_restore
from tests.support import ROOT
from tests.support.experiments.failed import save_rarely
from tests.support.ray.quiet import contents, wait_until_quiet
from tests.support.ray.real_restore import TRAINABLE_ENV, Restoring
from tests.support.waiting import PATIENCE_SECONDS

OPTIONS = PrepareOptions(
    choices=PlanChoices(flags=ResumeFlags.from_flags(resume_errored=True)), stale_after=timedelta(0)
)


def take_over(store):
    """Start the next restore as soon as the lease of the frozen one has run out."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            prepared = prepare_restore(store, "r2", OPTIONS)
            assert isinstance(prepared, PreparedRestore)
            return start_restore(prepared, holder="the next", ttl_seconds=120)
        except LeaseHeldError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def test_a_frozen_runner_thaws_notices_and_ends_without_writing_anything(copied, gate):
    directory = copied("errored")
    save_rarely(directory)
    restoring = Restoring(directory, "errored", env=gate.env, ttl_seconds=40.0)
    store = restoring.store
    request, frozen, seen = restoring.run_until(4)
    wait_until_quiet(directory)  # but for its beats, it only waits
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        wait_until_quiet(directory)
        plan, settled = take_over(store)
        assert settled is not None
        (trial,) = plan.to_run
        newer = claim_attempt(
            store, plan, trial.trial_id, RunnerSettings(trainable=restoring.trainable)
        )
        healed = {**TRAINABLE_ENV, "TUNE_TEST_HEALED": "1"}
        process = LocalLauncher(env=healed, pythonpath=[ROOT.as_posix()]).start(newer)
        lines = list(process.lines())
        assert process.wait() == EXIT_FINISHED, "\n".join(lines)
        commit_restore(store, "r2")
        before = contents(directory)
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    ran = restoring.finish(request, frozen, tuple(seen))

    assert ran.code == EXIT_FENCED, ran.output
    assert contents(directory) == before
    assert restoring.iterations() == restoring.csv_iterations() == [1, 2, 3, 4, 5, 6]
    assert {t.status for t in read_experiment(store).trials} == {"TERMINATED"}
