"""What lies on the desk of a restore."""

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.attempts import AttemptId
from airflow_tune_restore.protocol.desk import Desk, OnDesk
from airflow_tune_restore.storage.memory import MemoryStore


def test_it_tells_what_to_run_what_to_stop_and_whether_more_comes():
    desk = Desk(MemoryStore(), "r")
    assert desk.read() == OnDesk()
    for trial_id in ("a", "odd/@ id"):
        desk.hand_over(trial_id, 1)
        desk.hand_over(trial_id, 1)
    desk.ask_to_stop("a", 1)
    desk.close()
    assert desk.read() == OnDesk(
        to_run=[AttemptId("r", "a", 1), AttemptId("r", "odd/@ id", 1)],
        to_stop={AttemptId("r", "a", 1)},
        is_closed=True,
    )
    desk.clear("a", 1)
    assert desk.read() == OnDesk(to_run=[AttemptId("r", "odd/@ id", 1)], is_closed=True)
    desk.clear("a", 1)  # what is off the desk stays off


def test_what_else_lies_there_is_nothing():
    store = MemoryStore()
    for name in ("run.json", "@000001.run.json", "a@1.run.json", "a@000001.walk.json", "a"):
        store.put(f"{layout.desk_dir('r')}/{name}", b"{}")
    assert Desk(store, "r").read() == OnDesk()
