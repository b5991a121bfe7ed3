"""One DAG for the sweeps of many teams: a mapping for some, and recipes of the sweeps for the others."""

from airflow.sdk import DAG, Param

from airflow_tune_restore.task_group import TuneRestoreTaskGroup

CODE = "the code of all teams"  # the fixture `dags` puts its directory here

with DAG(
    "nightly_of_teams",
    schedule=None,
    params={"prefix": Param("", type="string"), "launcher": Param("ray", type="string")},
):
    TuneRestoreTaskGroup(
        prefix="{{ params.prefix }}",
        trainable={
            "team_a/**": {
                "trainable": "tests.trainables:counting",
                "env": {"TUNE_TEST_TEAM": "a"},
            },
            "ScaledCounter": {
                "trainable": "tests.trainables:ScaledCounter",
                "runtime_env": {"env_vars": {"TUNE_TEST_TEAM": "b"}},
            },
        },
        recipes=["tests.*"],
        launcher="{{ params.launcher }}",
        ray_conn_id="ray_jobs_default",
        runtime_env={"working_dir": CODE},
        env={"TUNE_TEST_HEALED": "1"},
        resume_errored=True,
        stale_after=0,
        wait=False,
    )
