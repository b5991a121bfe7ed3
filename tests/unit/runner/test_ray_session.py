"""Starting a private Ray where it starts slowly."""

import logging
import os
from dataclasses import replace

import pytest
import ray

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import ray_session

SLOW = "The current node timed out during startup."
REQUEST = RunnerRequest(
    experiment="e", restore_id="r", trial_id="t", attempt=1, trainable="m:t", trainable_name="t",
    action="resume", resources={"CPU": 1.0},
)  # fmt: skip


@pytest.fixture
def starts(monkeypatch):
    """Options of each start of a Ray that is up after so many; set `starts.fails`."""

    class Starts(list):
        fails = 0

        def init(self, **options):
            self.append(options)
            if len(self) <= self.fails:
                raise Exception(SLOW)  # noqa: TRY002  as Ray does

    for name in ray_session.PRIVATE_ENV:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    starts = Starts()
    monkeypatch.setattr(ray, "init", starts.init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return starts


def test_a_ray_that_is_too_slow_to_start_is_started_again(starts):
    starts.fails = ray_session.STARTS - 1
    ray_session.connect(REQUEST, {"CPU": 1.5})
    assert [options["num_cpus"] for options in starts] == [2] * ray_session.STARTS


def test_one_that_never_starts_is_given_up_in_its_own_words(starts):
    starts.fails = ray_session.STARTS
    with pytest.raises(Exception, match=SLOW):
        ray_session.connect(REQUEST, {"CPU": 1.5})
    assert len(starts) == ray_session.STARTS


def test_a_private_ray_is_as_large_as_what_is_asked_for_now_in_whole_numbers(starts, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ray_session.connect(REQUEST, {"CPU": 2.5, "GPU": 0.5, "special": 0.5})
    (options,) = starts
    assert (options["num_cpus"], options["num_gpus"]) == (3, 1)
    assert options["resources"] == {"special": 1}
    assert options["_memory"] is None


def test_no_more_gpus_than_ray_may_see(starts, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    ray_session.connect(REQUEST, {"CPU": 1.0, "GPU": 4.0})
    assert starts[0]["num_gpus"] == 2


@pytest.mark.parametrize("there", [0, 3])
def test_no_more_gpus_than_there_are(starts, monkeypatch, there):
    from ray._private import accelerators

    manager = accelerators.get_accelerator_manager_for_resource("GPU")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", lambda: there)
    ray_session.connect(REQUEST, {"CPU": 1.0, "GPU": 4.0})
    assert starts[0]["num_gpus"] == there


def test_memory_is_what_is_asked_for_as_far_as_the_machine_has_it(starts, monkeypatch):
    from ray._private import utils

    monkeypatch.setattr(utils, "get_system_memory", lambda: 1000 * 1024**2)
    for free, asked, given in ((300, 500, 500), (900, 500, 700), (300, 5000, 1000)):
        monkeypatch.setattr(utils, "estimate_available_memory", lambda free=free: free * 1024**2)
        ray_session.connect(REQUEST, {"CPU": 1.0, "memory": asked * 1024.0**2})
        assert starts[-1]["_memory"] == given * 1024**2


@pytest.fixture
def in_a_job(monkeypatch):
    """The variables of a Ray job, which a task may be, and so the runner's parent."""
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"py_modules": ["gcs://x"]}}'
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("PYTHONPATH", "/code")
    monkeypatch.setenv("RAY_OVERRIDE_JOB_RUNTIME_ENV", "")  # so that it is as before after the test
    monkeypatch.delenv("RAY_OVERRIDE_JOB_RUNTIME_ENV")


@pytest.mark.usefixtures("in_a_job")
@pytest.mark.parametrize("address", [None, "10.0.0.2:6379"])
def test_a_ray_elsewhere_takes_nothing_from_the_job_around_the_runner(starts, address):
    """The packages of the job's runtime_env are in its own cluster only."""
    ray_session.connect(replace(REQUEST, address=address), {"CPU": 1.0})
    assert starts[0]["address"] == (address or "local")
    assert not {"RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS"} & set(os.environ)


@pytest.mark.usefixtures("in_a_job")
def test_a_runner_that_joins_the_cluster_of_the_job_around_it_adds_to_the_jobs_runtime_env(starts):
    request = replace(REQUEST, address="10.0.0.1:6379")
    ray_session.connect(request, {"CPU": 1.0})
    assert starts[0]["runtime_env"] == {"env_vars": {"PYTHONPATH": "/code"}}
    assert os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"
    assert "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    assert not ray_session.is_own_job(request)


@pytest.mark.usefixtures("in_a_job")
def test_a_runner_that_is_a_job_has_the_jobs_runtime_env(starts):
    request = replace(REQUEST, address="auto")
    ray_session.connect(request, {"CPU": 1.0})
    assert starts[0]["runtime_env"] is None
    assert ray_session.is_own_job(request)


def test_rays_lines_that_only_repeat_are_not_printed_and_its_warnings_are(starts):
    from ray._private import worker
    from ray._private.authentication import authentication_token_setup
    from ray.tune.execution import tune_controller

    ray_session.connect(REQUEST, {"CPU": 1.0})
    # that token authentication is enabled, and that RAY_AUTH_MODE can disable it
    assert not authentication_token_setup.logger.isEnabledFor(logging.WARNING)
    assert not worker.logger.isEnabledFor(logging.INFO)  # "Started a local Ray instance."
    assert not tune_controller.logger.isEnabledFor(
        logging.INFO
    )  # "Restoring the run from seed.json"
    assert worker.logger.isEnabledFor(logging.WARNING)
    assert tune_controller.logger.isEnabledFor(logging.WARNING)


def test_a_private_ray_starts_no_process_for_a_dashboard_or_an_autoscaler(starts, monkeypatch):
    from ray._private import node

    kept = vars(node.Node)["start_api_server"], vars(node.Node)["start_monitor"]
    seen = []

    def init(**_options):
        seen.append(node.Node.start_api_server(None, include_dashboard=False))
        seen.append(node.Node.start_monitor(None))

    monkeypatch.setattr(ray, "init", init)
    ray_session.connect(REQUEST, {"CPU": 1.0})
    assert seen == [None, None]
    # a Ray that the user's code starts is as it was
    assert (vars(node.Node)["start_api_server"], vars(node.Node)["start_monitor"]) == kept


def test_a_ray_that_lacks_what_is_left_out_starts_all_the_same(starts, monkeypatch):
    from ray._private import node

    monkeypatch.delattr(node.Node, "start_monitor")
    ray_session.connect(REQUEST, {"CPU": 1.0})
    assert len(starts) == 1
    assert not hasattr(node.Node, "start_monitor")


def test_settings_of_a_private_ray_are_the_users_where_he_has_set_them(starts, monkeypatch):
    mine, *_, ours = ray_session.PRIVATE_ENV
    monkeypatch.setenv(mine, "1")
    ray_session.connect(REQUEST, {"CPU": 1.0})
    assert os.environ[mine] == "1"
    assert os.environ[ours] == ray_session.PRIVATE_ENV[ours]


def test_a_cluster_that_is_joined_is_left_as_it_is(starts, monkeypatch):
    from ray._private import node

    kept = vars(node.Node)["start_api_server"]
    seen = []
    monkeypatch.setattr(
        ray, "init", lambda **_options: seen.append(vars(node.Node)["start_api_server"])
    )
    ray_session.connect(replace(REQUEST, address="head:6379"), {})
    assert seen == [kept]
    assert not set(ray_session.PRIVATE_ENV) & set(os.environ)


@pytest.mark.parametrize("unit", layout.RUNS_OF_MANY)
def test_a_run_of_many_gets_all_cpus_and_all_gpus_if_any_trial_asks_for_one(
    starts, monkeypatch, unit
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setenv("TUNE_RESTORE_CPUS", "7")
    many = replace(REQUEST, trial_id=unit)
    ray_session.connect(many, {"CPU": 2, "GPU": 0.5})
    ray_session.connect(many, {"CPU": 9})
    assert [(o["num_cpus"], o["num_gpus"]) for o in starts] == [(7, 3), (9, None)]
