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
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import FAILED
from tests.support.airflow import canary
from tests.support.experiments.failed import TRAINABLES
from tests.support.experiments.sweeps import copy_sweep
from tests.support.ray.cluster import ray_cluster
from tests.support.ray.compared import RESUMED, Case, compare
from tests.support.ray.tuner_restore import ask_ray

DAG = "nightly_recovery"
TRIAL = "restore.trial"
NAME = "on_ray"

OF_TEAMS = "nightly_of_teams"
TEAMS = {"team_a": "errored", "team_b": "asha_class", "team_c": "registered"}
"""The kind of each team's sweep. They are restored by a glob, a recorded name, and a recipe of its own."""

OWN_RECIPE = {"schema": 1, "trainable": "counting_by_name", "imports": ["tests.trainables"]}


@pytest.fixture(scope="module")
def cluster(running, seaweed):
    """CPUs enough for all trials to run at once; keys of the store in its environment."""
    env = {**seaweed.env, "TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_TRAIN_V2_ENABLED": "0"}
    with ray_cluster(env, num_cpus=4) as started:
        running.connect("ray_jobs_default", started.connection)
        yield started


def test_a_night_on_a_cluster_ends_as_tuner_restore(
    running, cluster, seaweed, canaries, gates, by_hand, tmp_path
):
    place = f"night_on_ray/{NAME}"
    ours = seaweed.upload(copy_sweep("killed", tmp_path / NAME), place)
    gates.close(NAME)
    prefix = f"s3://seaweed@{seaweed.bucket}/night_on_ray"
    run_id = running.trigger(DAG, {"prefix": prefix, "stale_after": 0, "launcher": "ray"})
    killed = kill_a_worker(running, cluster, run_id)
    running.eventually(lambda: len(jobs(cluster, "RUNNING")) >= 2)
    running.eventually(lambda: "deferred" in running.states(DAG, run_id)[TRIAL])
    running.restart_triggerer()
    cancelled = cancel_a_job(cluster, running)
    gates.open(NAME)
    assert running.finish(DAG, run_id) == "success", running.log_tail()
    tasks = [task for task in running.tasks(DAG, run_id) if task["task_id"] == TRIAL]
    assert [task["state"] for task in tasks] == ["success"] * 3
    tries = {task["map_index"]: task["try_number"] for task in tasks}
    assert tries[killed] > 1
    # a job was cancelled and went on in another one; no trial ever had two at once
    seen = jobs(cluster)
    trial_id = seen[cancelled]["metadata"]["trial_id"]
    assert [j["status"] for j in seen.values() if j["metadata"]["trial_id"] == trial_id] == [
        "STOPPED",
        "SUCCEEDED",
    ]
    assert len({j["metadata"]["trial_id"] for j in seen.values()}) == 3
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
    running, cluster, seaweed, tmp_path
):
    place = "night_of_teams/sweeps"
    for team, kind in {**TEAMS, "team_d": "two_errored"}.items():
        sweep = shutil.copytree(FAILED / kind, tmp_path / "ours" / team / kind)
        if team == "team_c":
            (sweep / ".tune_restore").mkdir()
            (sweep / ".tune_restore" / "recipe.json").write_text(json.dumps(OWN_RECIPE))
        seaweed.upload(sweep, f"{place}/{team}/{kind}")
    unknown = f"{seaweed.bucket}/{place}/team_d"
    before = objects(seaweed, unknown)
    prefix = f"s3://seaweed@{seaweed.bucket}/{place}"
    with ThreadPoolExecutor(1) as pool:
        by_hand = pool.submit(restore_by_hand, tmp_path / "theirs")
        run_id = running.trigger(OF_TEAMS, {"prefix": prefix})
        assert running.finish(OF_TEAMS, run_id) == "success", running.log_tail()
    lines = running.xcom(OF_TEAMS, run_id, "restore.commit", "experiments")
    found = {line["experiment"]: (line["outcome"], line["trials_finished"]) for line in lines}
    restored = {f"{prefix}/{team}/{kind}": ("restored", 1) for team, kind in TEAMS.items()}
    sweep = f"{prefix}/team_d/two_errored"
    assert found == {**restored, sweep: ("unknown", 0)}
    assert objects(seaweed, unknown) == before
    line = 'Add the line "counting": "package.module:attribute", to trainable={…}'
    assert line in running.task_log(OF_TEAMS, run_id, "restore.plan")
    table = running.task_log(OF_TEAMS, run_id, "restore.commit").splitlines()
    (row,) = [row for row in table if sweep in row and "no trainable" in row]
    assert line in row
    uris = [f"{seaweed.url}/{place}/{team}/{kind}" for team, kind in TEAMS.items()]
    reported = {}
    all_ours = ask_ray("describe", *uris, **seaweed.env)
    for (team, kind), ours, theirs in zip(TEAMS.items(), all_ours, by_hand.result(), strict=True):
        assert (ours["errors"], ours["terminated"]) == (0, len(ours["trials"]))
        reported[team] = take_teams(ours)
        compare(ours, theirs, Case(team, kind, RESUMED))
    # from `env` of one recipe, and from `runtime_env` of another
    assert reported == {"team_a": {"a"}, "team_b": {"b"}, "team_c": set()}


def restore_by_hand(directory) -> list[dict]:
    """Let `Tuner.restore` bring copies of the teams' sweeps back, and return what Ray reads of them."""
    copies = [shutil.copytree(FAILED / kind, directory / kind) for kind in TEAMS.values()]
    cases = [
        {"uri": str(copy), "trainable": TRAINABLES[copy.name], "flags": RESUMED} for copy in copies
    ]
    (directory / "cases.json").write_text(json.dumps(cases))
    ask_ray("restore", str(directory / "cases.json"), TUNE_TEST_HEALED="1")
    return ask_ray("describe", *map(str, copies))


def objects(s3, place: str) -> dict[str, tuple]:
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
    """Return jobs by submission id, oldest first."""
    found = [job for job in cluster.call("/api/jobs/") if job["submission_id"]]
    found.sort(key=lambda job: job["start_time"])
    return {j["submission_id"]: j for j in found if status in ("", j["status"])}


def logs(cluster) -> dict[str, str]:
    return {
        name: cluster.call(f"/api/jobs/{name}/logs")["logs"] for name in jobs(cluster, "RUNNING")
    }
