"""A sweep as one task under a real Airflow: killed twice, it ends through the retries of this task."""

import json

from tests.support.airflow.sweeps import FIRST, RUNNER, SCRIPT, SECOND, DyingSweep, result_tables


def test_a_sweep_that_is_killed_twice_ends_as_one_that_nobody_killed(running, seaweed, gates):
    killed = DyingSweep(running, seaweed, gates, "local", "killed_twice")
    spared = DyingSweep(running, seaweed, gates, "local", "spared")
    killed.close(FIRST, SECOND)
    killed.begin()
    spared.begin()
    killed.wait_before(FIRST)
    killed.kill(SCRIPT)
    killed.open(FIRST)
    killed.wait_before(SECOND)  # a restore of the same task goes on
    killed.kill(RUNNER)
    killed.open(SECOND)
    killed.finish()
    spared.finish()
    assert (killed.tries(), spared.tries()) == (3, 1)
    log = killed.log()
    assert "SIGKILL ended the script" in log
    assert "attempt 2 of restore" in log
    ours, theirs = result_tables(killed, spared)
    assert ours == theirs
    assert [row["status"] for row in ours] == ["TERMINATED"] * 2
    returned = running.xcom(killed.dag_id, killed.run_id, "sweep", "return_value")
    assert (returned["failed"], returned["samples_left"]) == ([], 0)
    leases = seaweed.filesystem().ls(f"{seaweed.bucket}/sweeps/killed_twice/.tune_restore/lease")
    claims = [path for path in leases if path.endswith(".claim.json")]
    assert len([path for path in leases if "release" in path]) == len(claims) == 2  # noqa: PLR2004
    assert json.loads(seaweed.filesystem().cat(claims[0]))["restore_id"].startswith("sweep-")
