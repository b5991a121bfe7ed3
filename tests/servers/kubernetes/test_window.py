"""Pods at the end of the window of their restore: one that waits is deleted, and nobody fails."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from airflow_tune_restore.protocol import layout, window
from airflow_tune_restore.restore import follow as following
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.version_compat import AirflowSkipException
from tests.support.kubernetes.stand_in import BOTH

PATIENT = {"startup_timeout_seconds": 600, "schedule_timeout_seconds": 600}
OVER = "the window of this restore ended at"


def close(trial, *, seconds: float) -> None:
    """Let the window of a planned restore end so soon."""
    plan = read_plan(trial.store, trial.restore_id)
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    changed = replace(plan, pause_at=end.isoformat())
    trial.store.put(layout.plan_key(trial.restore_id), changed.to_json())
    for each in plan.to_run:  # then each task reads the plan
        trial.store.delete(layout.seed_key(trial.restore_id, each.trial_id))


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(window, "FOLLOWED_SECONDS", 0.5)


@BOTH
def test_a_pod_that_waits_for_a_node_is_deleted_and_its_task_is_skipped(trial, api, deferred):
    api.kubelet.has_room = False
    close(trial, seconds=3)
    with pytest.raises(AirflowSkipException, match=OVER):
        trial.restore(deferred=deferred, **PATIENT)
    api.wait_for(lambda pods: not pods)
    assert trial.failures == ()


def test_a_shared_pod_that_waits_is_deleted_and_each_task_is_skipped(new_trial, api, monkeypatch):
    monkeypatch.setattr(following, "START_SECONDS", 0.5)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.2)
    whole = new_trial("whole", strategy="whole_experiment")
    api.kubelet.has_room = False
    close(whole, seconds=3)
    tasks = [whole.start(**PATIENT), whole.start(**PATIENT)]
    for task in tasks:
        with pytest.raises(AirflowSkipException, match=OVER):
            task.end()
    api.wait_for(lambda pods: not pods)


@pytest.mark.parametrize(("ttl", "most"), [(None, 121), (60, 60)])
def test_kubernetes_itself_ends_a_pod_soon_after_the_window(trial, api, ttl, most):
    close(trial, seconds=120)
    trial.open()
    assert trial.restore(deferred=False, ttl=ttl)["attempt"] == 1
    (pod,) = api.created
    assert most - 60 < pod["spec"]["activeDeadlineSeconds"] <= most
    assert "ttl" not in pod["spec"]


def test_a_pod_that_kubernetes_ends_with_the_window_has_not_failed(trial, monkeypatch):
    """As one whose image has an older version of this package, which does not pause."""
    close(trial, seconds=2)
    with pytest.raises(AirflowSkipException, match=OVER):
        trial.restore(deferred=False)
    assert trial.failures == ()
