"""Starting a private Ray where it starts slowly."""

import pytest
import ray

from airflow_tune_restore.restore.request import RunnerRequest
from airflow_tune_restore.runner import ray_session

SLOW = "The current node timed out during startup."
REQUEST = RunnerRequest(
    experiment="e", restore_id="r", trial_id="t", attempt=1, trainable="m:t", trainable_name="t",
    action="resume", resources={"CPU": 2.0},
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

    starts = Starts()
    monkeypatch.setattr(ray, "init", starts.init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return starts


def test_a_ray_that_is_too_slow_to_start_is_started_again(starts):
    starts.fails = ray_session.STARTS - 1
    ray_session.connect(REQUEST)
    assert [options["num_cpus"] for options in starts] == [2] * ray_session.STARTS


def test_one_that_never_starts_is_given_up_in_its_own_words(starts):
    starts.fails = ray_session.STARTS
    with pytest.raises(Exception, match=SLOW):
        ray_session.connect(REQUEST)
    assert len(starts) == ray_session.STARTS
