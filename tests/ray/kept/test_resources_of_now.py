"""A private Ray is made for what the trainable asks for now; the kept one restores a copy.

More: ../slow/test_more_resources_of_now.py.
"""

from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_REFUSED
from airflow_tune_restore.restore.commit import commit_restore
from tests.support.ray.real_restore import Restoring

ASKING = "tests.support.experiments.asking"


def test_a_trial_that_asks_for_more_than_was_recorded_ends_as_with_tuner_restore(hosts, copied):
    ours, theirs = copied("errored", "ours/errored"), copied("errored", "theirs/errored")
    restoring = Restoring(ours, "errored")
    assert restoring.trial.resources["CPU"] < 3
    ran = restoring.run(trainable=f"{ASKING}:three_cpus")
    assert ran.code == EXIT_FINISHED, ran.output
    commit_restore(restoring.store, restoring.restore_id)

    case = {"uri": str(theirs), "trainable": f"{ASKING}:three_cpus"}
    case["flags"] = {"resume_errored": True}
    hosts.ray.call("restore", case, TUNE_TEST_HEALED="1")
    mine, his = (hosts.ray.call("describe", str(each)) for each in (ours, theirs))
    assert mine["trials"] == his["trials"]
    assert {trial["status"] for trial in mine["trials"]} == {"TERMINATED"}


def test_what_one_machine_can_never_hold_is_refused_and_not_waited_for(copied):
    restoring = Restoring(copied("errored"), "errored")
    ran = restoring.run(trainable=f"{ASKING}:two_nodes")
    assert (ran.code, ran.outcome.result) == (EXIT_REFUSED, "refused"), ran.output
    assert ran.outcome.error == (
        f"Trial {restoring.trial.trial_id} requests 2 bundles of CPU 1 (STRICT_SPREAD), and the private "
        "Ray of this machine cannot hold that, even if idle. It has CPU 2. Request less in the "
        "trainable (tune.with_resources), or restore on a larger machine: launcher='ray' or "
        "launcher='kubernetes'."
    )
    assert "Traceback" not in ran.output
    assert restoring.iterations() == [1, 2, 3]
