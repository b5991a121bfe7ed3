"""The desk: what is handed to a shared driver, and what it is asked to stop."""

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.desk import Desk, OnDesk
from airflow_tune_restore.storage.memory import MemoryStore


@pytest.fixture
def desk():
    return Desk(MemoryStore(), "r1")


@pytest.mark.parametrize("trial_id", ["d1fcc_00002", "a@000001.run", "..", "ü/x*", "a.b@c", "%"])
def test_an_attempt_lies_there_until_it_is_cleared(desk, trial_id):
    attempt = AttemptId("r1", trial_id, 1)
    desk.hand_over(trial_id, 1)
    desk.hand_over(trial_id, 1)
    assert desk.read() == OnDesk(to_run=[attempt])
    desk.ask_to_stop(trial_id, 1)
    assert desk.read() == OnDesk(to_run=[attempt], to_stop={attempt})
    desk.clear(trial_id, 1)
    desk.clear(trial_id, 1)
    assert desk.read() == OnDesk()


def test_it_is_closed_once_and_for_all(desk):
    assert not desk.read().is_closed
    desk.close()
    desk.hand_over("a", 1)
    assert desk.read() == OnDesk(to_run=[AttemptId("r1", "a", 1)], is_closed=True)


def test_what_else_lies_there_is_left_alone(desk):
    for name in (
        "",
        "@000001.run",
        "a@1.run",
        "a@000001.jump",
        "a@9999999999999999.run",
        "x",
        "a@.run",
    ):
        desk.store.put(f"{layout.desk_dir('r1')}/{name}.json", b"?")
    assert desk.read() == OnDesk()
