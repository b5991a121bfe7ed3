"""A trial that no node of a cluster can hold: warned of, waited for, and given up in the end."""

import pytest

from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.request import EXIT_INTERRUPTED
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import config_of
from tests.support.ray.real_restore import TRAINABLE_ENV, Restoring

ASKING = "tests.support.experiments.asking"
SOON = {"TUNE_RESTORE_ROOM_SECONDS": "5"}


def test_it_is_warned_of_and_ends_with_a_snapshot_and_a_cause_of_its_own(hosts, copied):
    restoring = Restoring(copied("errored"), "errored", hosts=hosts, env=SOON)
    ran = restoring.run(trainable=f"{ASKING}:a_hundred_cpus")
    assert (ran.code, ran.outcome.result) == (EXIT_INTERRUPTED, "interrupted"), ran.output
    assert (ran.outcome.cause, ran.outcome.error_type) == ("no_room", "NoRoomError")
    named = f"Trial {restoring.trial.trial_id} requests CPU 100, and the cluster"
    assert f"{named} cannot hold that, even if idle. It has CPU 4." in ran.outcome.error
    assert "It waited 5 s." in ran.outcome.error
    assert "It waits for a larger node for at most 5 s." in ran.output
    assert "Traceback" not in ran.output
    trial, _ = restoring.snapshot()
    assert trial["status"] == "PENDING"
    # that was the cluster's fault: the next attempt goes on from there
    assert restoring.run().outcome.result == "finished"
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("trainable", "other"),
    [("sparse_asks_for_a_hundred", "TERMINATED"), ("a_hundred_cpus", "PAUSED")],
)
def test_in_a_run_of_all_it_is_given_up_alone(hosts, copied, trainable, other):
    """The others go on; if there are none, the run ends."""
    address = str(copied("two_errored"))
    summary = hosts.restore_by_us(
        address, f"{ASKING}:{trainable}", strategy="whole_experiment",
        flags=ResumeFlags.from_flags(resume_errored=True),
        env={**TRAINABLE_ENV, **SOON, "TUNE_TEST_HEALED": "1"},
    )  # fmt: skip
    store = open_store(address)
    trials = {config_of(trial)["role"]: trial for trial in read_experiment(store).trials}
    assert trials["fails"].status == other
    outcome = AttemptRecords(store, summary.restore_id, trials["fails sparsely"].trial_id).outcome()
    assert (outcome.result, outcome.cause) == ("interrupted", "no_room")
    assert "requests CPU 100" in outcome.error
    assert trials["fails sparsely"].status == "PAUSED"
    run = AttemptRecords(store, summary.restore_id, layout.WHOLE_EXPERIMENT).outcome()
    assert (run.result, run.error) == ("finished", "")
