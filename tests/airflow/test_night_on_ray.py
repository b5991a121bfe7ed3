"""Nightly DAGs bring experiments on S3 back through a real Ray cluster, and end as `Tuner.restore` does.

One night, the triggerer and a worker are killed, and a job is cancelled in the Ray dashboard.
Authentication is on. Ray's token is known to the connection alone, the store's keys to the cluster and to
Airflow's connection. Another night, one DAG restores the sweeps of three teams, each with its own recipe,
and names the sweep that nobody has a trainable for.
"""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from datetime import datetime

import pytest

from airflow_tune_restore.protocol.layout import SHARED_DRIVER
from tests.support import FAILED
from tests.support.airflow import canary
from tests.support.experiments.sweeps import copy_sweep
from tests.support.ray.cluster import ray_cluster
from tests.support.ray.compared import RESUMED, Case, compare

DAG = "nightly_recovery"
TRIAL = "restore.trial"
NAME = "on_ray"

OF_TEAMS = "nightly_of_teams"
TEAMS = {"team_a": "errored", "team_b": "asha_class", "team_c": "registered"}
"""The kind of each team's sweep. One has a glob, one its recorded name, and one a recipe of its own."""

UNKNOWN = "team_d/two_errored"

OWN_RECIPE = {"schema": 1, "trainable": "counting_by_name", "imports": ["tests.trainables"]}


@pytest.fixture(scope="module")
def cluster(running, seaweed):
    """CPUs enough for all trials of both nights to run at once; keys of the store in its environment."""
    env = {**seaweed.env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    with ray_cluster(env, num_cpus=6) as started:
        running.connect("ray_jobs_default", started.connection)
        yield started


@dataclass(frozen=True)
class OfTeams:
    """The DAG run for all teams, and the objects of the unknown sweep before it."""

    run_id: str
    unknown: dict[str, tuple[bytes, datetime]]


@pytest.fixture(scope="module")
def of_teams(running, cluster, seaweed, tmp_path_factory):
    """Begin the night of all teams. It goes on during the other one."""
    directory = tmp_path_factory.mktemp("teams")
    for team, kind in {**TEAMS, "team_d": "two_errored"}.items():
        sweep = shutil.copytree(FAILED / kind, directory / team / kind)
        if team == "team_c":
            (sweep / ".tune_restore").mkdir()
            (sweep / ".tune_restore" / "recipe.json").write_text(json.dumps(OWN_RECIPE))
    seaweed.upload(directory, OF_TEAMS)
    unknown = objects(seaweed, f"{seaweed.bucket}/{OF_TEAMS}/{UNKNOWN}")
    prefix = f"s3://seaweed@{seaweed.bucket}/{OF_TEAMS}"
    return OfTeams(running.trigger(OF_TEAMS, {"prefix": prefix}), unknown)


@pytest.mark.usefixtures("of_teams")
def test_a_night_on_a_cluster_ends_as_tuner_restore(
    running, cluster, seaweed, canaries, gates, by_hand, tmp_path
):
    place = f"night_on_ray/{NAME}"
    ours = seaweed.upload(copy_sweep("killed", tmp_path / NAME), place)
    gates.close(NAME)
    prefix = f"s3://seaweed@{seaweed.bucket}/night_on_ray"
    run_id = running.trigger(DAG, {"prefix": prefix, "stale_after": 0, "launcher": "ray"})
    killed = kill_a_worker(running, cluster, run_id)
    running.eventually(lambda: jobs(cluster, "RUNNING"))
    running.eventually(lambda: "deferred" in running.states(DAG, run_id)[TRIAL])
    running.restart_triggerer()
    cancelled = cancel_a_job(cluster, running)
    gates.open(NAME)
    assert running.finish(DAG, run_id) == "success", running.log_tail()
    tasks = [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]
    assert [task["state"] for task in tasks] == ["success"] * 3
    tries = {task["map_index"]: task["try_number"] for task in tasks}
    assert tries[killed] > 1
    # the job that all share was cancelled; those that it had begun went on in jobs of their own
    seen, of_trials = jobs(cluster), {}
    for job in seen.values():
        of_trials.setdefault(job["metadata"]["trial_id"], []).append(job["status"])
    first, *later = of_trials.pop(SHARED_DRIVER)
    assert (next(iter(seen)), first) == (cancelled, "STOPPED")
    assert of_trials
    assert list(of_trials.values()) == [["SUCCEEDED"]] * len(of_trials)
    assert set(later) <= {"SUCCEEDED"}
    for index in tries:
        assert "iteration 6, score=" in running.whole_log(DAG, run_id, TRIAL, index)
    places = {
        "the jobs": json.dumps(seen).encode(),
        **canary.objects(seaweed, f"{seaweed.bucket}/{place}"),
        **canary.values(running.home / "airflow.db"),
        **canary.files(running.home),
    }
    assert canary.leaks(places, (*canaries.all, cluster.token)) == []
    by_hand.assert_equal(ours, seaweed.env)


def test_one_dag_restores_the_sweeps_of_three_teams_and_names_the_unknown_one(
    running, of_teams, seaweed, by_hand
):
    assert running.finish(OF_TEAMS, of_teams.run_id) == "success", running.log_tail()
    lines = running.xcom(OF_TEAMS, of_teams.run_id, "restore.commit", "experiments")
    found = {line["experiment"]: (line["outcome"], line["trials_finished"]) for line in lines}
    prefix = f"s3://seaweed@{seaweed.bucket}/{OF_TEAMS}"
    restored = {f"{prefix}/{team}/{kind}": ("restored", 1) for team, kind in TEAMS.items()}
    unknown = f"{prefix}/{UNKNOWN}"
    assert found == {**restored, unknown: ("unknown", 0)}
    assert objects(seaweed, f"{seaweed.bucket}/{OF_TEAMS}/{UNKNOWN}") == of_teams.unknown
    reason = "no trainable is given for counting. Add the line "
    reason += '"counting": "package.module:attribute", to trainable={…}'
    plan = running.task_log(OF_TEAMS, of_teams.run_id, "restore.plan")
    assert f"{unknown} is not restored: {reason}" in plan
    # a glob names a place, and the recipe of a sweep that sweep
    assert f"below a prefix with several directories: {prefix}/team_b/asha_class. If" in plan
    table = running.task_log(OF_TEAMS, of_teams.run_id, "restore.commit")
    assert f"{unknown} no trainable - {reason}" in " ".join(table.split())
    uris = [f"{seaweed.url}/{OF_TEAMS}/{team}/{kind}" for team, kind in TEAMS.items()]
    copies = [str(by_hand.directory.with_name(kind)) for kind in TEAMS.values()]
    described = by_hand.describe(*uris, *copies, env=seaweed.env)
    ours, theirs = described[: len(uris)], described[len(uris) :]
    # from `env` of one recipe, and from `runtime_env` of another
    assert list(map(take_teams, ours)) == [{"a"}, {"b"}, set()]
    for (team, kind), mine, his in zip(TEAMS.items(), ours, theirs, strict=True):
        assert (mine["errors"], mine["terminated"]) == (0, len(mine["trials"]))
        compare(mine, his, Case(team, kind, RESUMED))


def objects(s3, place: str) -> dict[str, tuple[bytes, datetime]]:
    """Return the body of each object, and when it was written."""
    store = s3.filesystem()
    found = store.find(place, detail=True)
    return {path: (store.cat_file(path), each["LastModified"]) for path, each in found.items()}


def take_teams(described: dict) -> set[str]:
    """Take out of all results in whose environment they were made, and return those that were."""
    trials = described["trials"]
    results = [result for trial in trials for result in (trial["last_result"], *trial["rows"])]
    return {result.pop("team") for result in results if "team" in result}


def kill_a_worker(running, cluster, run_id: str) -> int:
    """Kill the process of a trial's task with `kill -9`, and return its map index."""

    def trials() -> list[dict]:
        return [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]

    def at_work() -> list[dict]:
        return [task for task in trials() if task["state"] == "running" and task["pid"]]

    running.eventually(lambda: any(task["state"] for task in trials()), every=0.2)
    with cluster.silenced():  # a task has a process until the head has taken its job
        victim, *_ = running.eventually(at_work)
        os.kill(victim["pid"], signal.SIGKILL)
        running.eventually(lambda: victim["pid"] not in {task["pid"] for task in at_work()})
    return victim["map_index"]


def cancel_a_job(cluster, running) -> str:
    """Cancel a job as the dashboard's button does, once its trial has got somewhere."""
    victim = running.eventually(
        lambda: next((name for name, log in logs(cluster).items() if "iteration" in log), None)
    )
    cluster.call(f"/api/jobs/{victim}/stop", "POST")
    running.eventually(lambda: victim in jobs(cluster, "STOPPED"))
    return victim


def jobs(cluster, status: str = "") -> dict[str, dict]:
    """Return jobs of the night with one experiment by submission id, oldest first."""
    found = [job for job in cluster.call("/api/jobs/") if f"/{NAME} " in job["entrypoint"]]
    found.sort(key=lambda job: job["start_time"])
    return {j["submission_id"]: j for j in found if status in ("", j["status"])}


def logs(cluster) -> dict[str, str]:
    return {
        name: cluster.call(f"/api/jobs/{name}/logs")["logs"] for name in jobs(cluster, "RUNNING")
    }
