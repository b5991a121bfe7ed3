"""Whether ended trials show that no sample is left: what spares a scan the searcher's state."""

from datetime import timedelta

import pytest

from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.storage.local import LocalStore
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row


class CountingStore(LocalStore):
    """Remembers what was read."""

    read: list[str] = []  # noqa: RUF012  of all stores made by `at`

    def at(self, path):
        return CountingStore(self._path(path))

    def get(self, key, **limits):
        self.read.append(key)
        return super().get(key, **limits)


@pytest.fixture
def look(tmp_path):
    """Scan one experiment; return its report and the kinds of files that were read."""

    def scan_one(rows, *, total_samples, **state):
        make_experiment(tmp_path / "sweep", rows, total_samples=total_samples, **state)
        CountingStore.read.clear()
        (report,) = scan(CountingStore(tmp_path), stale_after=timedelta(0), use_index=False)
        return report, sorted(key.partition("-")[0] for key in CountingStore.read)

    return scan_one


def ended(trial_id: str, start: float, end: float, *, done: bool = True, **fields) -> list[str]:
    """Return a trial that ran from `start` to `end`."""
    result = {"training_iteration": 4, "done": done}
    return make_row(
        trial_id, last_result=result, last_result_time=end, run={"start_time": start}, **fields
    )


def test_trials_that_ran_side_by_side_and_ended_cost_one_get(look):
    report, read = look([ended("a", 1.0, 5.0), ended("b", 2.0, 6.0)], total_samples=2)
    assert (report.health, report.samples_left) == (Health.FINISHED, 0)
    assert read == ["experiment_state"]
    failed = ended("b", 2.0, 6.0, done=False, status="ERROR", error=True)
    report, read = look([ended("a", 1.0, 5.0), failed], total_samples=2)
    assert (report.health, report.samples_left) == (Health.ERRORED, 0)
    assert read == ["experiment_state"]


def test_it_is_seen_that_the_first_ran_beside_the_last(look):
    rows = [ended("a", 1.0, 9.0), ended("b", 9.5, 9.6), ended("c", 2.0, 3.0)]
    assert look(rows, total_samples=3)[1] == ["experiment_state"]


ONE_BY_ONE = [ended("a", 1.0, 5.0), ended("b", 5.5, 9.0)]
TOGETHER = [ended("a", 1.0, 5.0), ended("b", 2.0, 6.0)]


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        pytest.param(ONE_BY_ONE, {}, id="one at a time: the driver may have died in between"),
        pytest.param([ended("a", 1.0, 5.0)], {}, id="a single one"),
        pytest.param(
            [ended("a", 1.0, 5.0), ended("b", 2.0, 6.0, done=False)], {}, id="ended by a scheduler"
        ),
        pytest.param(TOGETHER, {"_resumed": True}, id="after a restore of Ray's"),
        pytest.param(TOGETHER, {"_resumed": None}, id="nobody knows whether after a restore"),
    ],
)
def test_where_samples_may_be_left_the_searchers_state_is_read(look, rows, state):
    report, read = look(rows, total_samples=len(rows) + 3, **state)
    assert (report.health, report.samples_left) == (Health.INTERRUPTED, 3)
    assert read == ["basic", "experiment_state"]


def test_after_a_commit_the_searchers_state_is_read(look, tmp_path):
    look(TOGETHER, total_samples=5)
    sweep = tmp_path / "sweep"
    (sweep / STATE_NAME.replace(".json", "_r000001.json")).write_bytes(
        (sweep / STATE_NAME).read_bytes()
    )
    report, _ = look(TOGETHER, total_samples=5)
    assert (report.health, report.samples_left) == (Health.INTERRUPTED, 3)
