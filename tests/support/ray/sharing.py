"""Trials of one real restore that share drivers, step by step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.desk import Desk
from airflow_tune_restore.protocol.records import is_listed
from airflow_tune_restore.protocol.request import EXIT_FINISHED, RunnerOutcome, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.shared_driver import hand_over
from tests.support.ray.compared import Case, ask_ray, compare
from tests.support.ray.kept import Hosts
from tests.support.ray.real_restore import Ran, Restoring


def multiply(experiment: Path, count: int) -> None:
    """Let the trial of an experiment that failed be there `count` times: its row, and its directory.

    The role of the nth is `fails n`, but for the first.
    """
    (path,) = experiment.glob("experiment_state-*.json")
    state = json.loads(path.read_text())
    (failed,) = (row for row in state["trial_data"] if json.loads(row[0])["status"] == "ERROR")
    trial = json.loads(failed[0])
    stem, _, number = trial["trial_id"].rpartition("_")
    for more in range(int(number) + 1, int(number) + count):
        copy = f"{stem}_{more:05d}"

        def renamed(text: str, copy: str = copy) -> str:
            text = text.replace(trial["trial_id"], copy)
            text = text.replace('"role": "fails"', f'"role": "fails {copy[-1]}"')
            # in pickles, too; both names have the same length
            return text.replace(trial["trial_id"].encode().hex(), copy.encode().hex())

        state["trial_data"].append([renamed(part) for part in failed])
        directory = renamed(trial["relative_logdir"])
        shutil.copytree(experiment / trial["relative_logdir"], experiment / directory)
        rows = experiment / directory / layout.RESULT_FILE
        rows.write_text(renamed(rows.read_text()))
    path.write_text(json.dumps(state))


def assert_same_end(hosts: Hosts, copied: Callable[..., Path], scratch: Path, case: Case) -> None:
    """Restore an experiment by one shared driver, and by Ray: both ends must be the same."""
    original, directory = copied(case.kind), copied(case.kind, "ours")
    if case.kind != "two_errored":
        multiply(original, 3)
        multiply(directory, 3)
    theirs = ask_ray(hosts, case, original, scratch)
    flags = ResumeFlags.from_flags(**case.flags)
    sharing = Sharing(directory, case.kind, hosts=hosts, healed=case.healed, flags=flags)
    sharing.hand_over(*sharing.trial_ids)
    ran = sharing.run()
    assert (ran.code, ran.outcome.result) == (EXIT_FINISHED, "finished"), ran.output
    results = {sharing.outcome(trial_id).result for trial_id in sharing.trial_ids}
    assert results == {"finished" if case.healed else "failed"}, ran.output
    commit_restore(sharing.store, sharing.restore_id)
    compare(hosts.ray.call("describe", str(directory)), theirs, case)


class Sharing(Restoring):
    """A restore whose trials share drivers; each driver is a runner of its own."""

    def __init__(self, uri: str | Path, kind: str, **options: Any) -> None:
        super().__init__(uri, kind, **{"strategy": "shared_driver", **options})
        self.desk = Desk(self.store, self.restore_id)

    @property
    def trial_ids(self) -> list[str]:
        """The trials to run, in the order of the plan."""
        return [trial.trial_id for trial in self.plan.to_run]

    @property
    def settings(self) -> RunnerSettings:
        return RunnerSettings(trainable=self.trainable, address=self.address, imports=self.imports)

    def hand_over(self, *trial_ids: str, closes: bool = True) -> None:
        """Do what the tasks of trials do; then nobody hands over more, if it `closes`."""
        for trial_id in trial_ids:
            request = hand_over(self.store, self.plan, trial_id, self.settings, log=lambda *_: None)
            assert request is not None
        if closes:
            self.desk.close()

    def claim(self, **changes: Any) -> RunnerRequest:
        """Claim the next driver."""
        request = claim_attempt(self.store, self.plan, layout.SHARED_DRIVER, self.settings)
        return self.changed(request, **changes)

    def records(self, trial_id: str) -> AttemptRecords:
        return AttemptRecords(self.store, self.restore_id, trial_id)

    def outcome(self, trial_id: str) -> RunnerOutcome | None:
        return self.records(trial_id).outcome(1)

    def has_begun(self, trial_id: str) -> bool:
        return self.records(trial_id).has_begun(1)

    def exists(self, key: str) -> bool:
        return is_listed(self.store, key)

    def progress(self, trial_id: str) -> list[int]:
        """Return the iterations that a follower of the trial sees."""
        tail = self.records(trial_id).progress(1)
        return [report.iteration for report in tail.reports] if tail is not None else []

    def printed(self, trial_id: str) -> list[str]:
        """Return what the trainable printed, as a follower of the trial sees it."""
        tail = self.records(trial_id).progress(1)
        return [line for line in tail.lines if " has done " in line] if tail is not None else []

    def reached(self, iteration: int) -> list[str]:
        """Return the trials that have reported an iteration."""
        return [t for t in self.trial_ids if iteration in self.progress(t)]

    def claim_own(self, trial_id: str) -> RunnerRequest:
        """Claim the next attempt of a trial for a runner of its own."""
        return claim_attempt(self.store, self.plan, trial_id, self.settings)

    def run_alone(self, trial_id: str) -> Ran:
        """Run the next attempt of a trial in a runner of its own."""
        request = self.claim_own(trial_id)
        return self.finish(request, self.launcher.start(request))
