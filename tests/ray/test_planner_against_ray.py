"""The planner gives Ray's own answers: both are asked about the same generated experiments."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_tune_restore.experiments.raw_row import checkpoint_fields
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import plan_night

STATUSES = ["PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"]
TYPES = ["skip", "resume", "restart"]


@pytest.fixture(scope="module")
def controller(tmp_path_factory):
    """Ray's TuneController on a directory, without a cluster: resuming needs none."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "8")
    from ray.train._internal.storage import StorageContext
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.registry import register_trainable
    from ray.tune.tune_config import ResumeConfig

    register_trainable("train", lambda config: None)
    staging = tmp_path_factory.mktemp("staging").as_posix()
    patch.setattr("ray.train._internal.storage._get_ray_train_session_dir", lambda: staging)

    def resume(directory: Path, choices: dict[str, str]) -> list[tuple]:
        """Return (id, status, checkpoint, whether it starts over) in the order Ray takes them."""
        storage = StorageContext(directory.parent.as_posix(), directory.name)
        config = ResumeConfig(**{k: ResumeConfig.ResumeType(v) for k, v in choices.items()})
        ours = TuneController(resume_config=config, storage=storage, fail_fast=True)
        assert ours.resumed
        return [
            (
                t.trial_id,
                t.status,
                Path(t.checkpoint.path).name if t.checkpoint else None,
                t.num_failures,
            )
            for t in ours.get_trials()
        ]

    yield resume
    patch.undo()


@st.composite
def experiments(draw):
    """Rows of every status, with and without results, errors and checkpoints, in any order of time."""
    rows = []
    for number in range(draw(st.integers(1, 6))):
        status = draw(st.sampled_from(STATUSES))
        reported = draw(st.booleans())
        rows.append(
            {
                "trial_id": f"id{number}",
                "status": status,
                "checkpoint": reported and draw(st.booleans()),
                "error": status == "ERROR",
                "num_failures": 1 if status == "ERROR" else draw(st.integers(0, 2)),
                "last_result": {"training_iteration": number + 1, "score": 1.5} if reported else {},
                "last_result_time": draw(st.sampled_from([5.0, 7.0, 9.0]))
                if reported
                else float("-inf"),
            }
        )
    return rows


@settings(
    max_examples=int(os.environ.get("PLANNER_EXAMPLES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=experiments(),
    finished=st.sampled_from(TYPES),
    unfinished=st.sampled_from(TYPES),
    errored=st.sampled_from(TYPES),
)
def test_every_combination_is_answered_as_ray_answers_it(
    controller, rows, finished, unfinished, errored
):
    choices = {"finished": finished, "unfinished": unfinished, "errored": errored}
    with tempfile.TemporaryDirectory() as scratch:
        directory = make_experiment(Path(scratch, "experiment"), [make_row(**row) for row in rows])
        recorded = _recorded_checkpoints(directory)
        for row, name in zip(rows, recorded, strict=True):
            if name:
                checkpoint = directory / f"dir_{row['trial_id']}" / name
                checkpoint.mkdir(parents=True)
                (checkpoint / "state.json").write_text("{}")
        store = open_store(directory.as_posix())
        plan = plan_night(store, flags=ResumeFlags.parse(choices))
        theirs = controller(directory, choices)
        shutil.rmtree(directory)

    assert len(plan.trials) == len(theirs)
    by_id = {row["trial_id"]: row for row in rows}
    for mine, (their_id, their_status, their_checkpoint, their_failures) in zip(
        plan.trials, theirs, strict=True
    ):
        row = by_id[mine.trial_id]
        if mine.action is TrialAction.RESTART:
            assert their_id not in by_id  # a new trial took its row
            assert (their_status, their_checkpoint, their_failures) == ("PENDING", None, 0)
            continue
        assert mine.trial_id == their_id
        match mine.action:
            case TrialAction.RESUME:
                assert their_status == "PENDING"
                assert mine.checkpoint == their_checkpoint
            case TrialAction.TERMINATE:
                assert their_status == "TERMINATED"
                assert row["status"] not in ("TERMINATED", "ERROR")
            case TrialAction.KEEP:
                assert their_status == row["status"]


@pytest.mark.parametrize("resume_unfinished", [True, False])
@pytest.mark.parametrize("resume_errored", [True, False])
@pytest.mark.parametrize("restart_errored", [True, False])
def test_the_three_flags_mean_what_tuner_restore_makes_of_them(
    resume_unfinished, resume_errored, restart_errored
):
    from ray.tune.tune import _build_resume_config_from_legacy_config as _  # noqa: F401
    from ray.tune.tuner import Tuner

    seen = {}

    class Stop(Exception):
        pass

    def capture(*_args, **kwargs):
        seen.update(vars(kwargs["resume_config"]))
        raise Stop

    patch = pytest.MonkeyPatch()
    patch.setattr("ray.tune.tuner.TunerInternal", capture)
    with pytest.raises(Stop):
        Tuner.restore(
            "/nowhere",
            trainable=lambda config: None,
            resume_unfinished=resume_unfinished,
            resume_errored=resume_errored,
            restart_errored=restart_errored,
        )
    patch.undo()
    ours = ResumeFlags.from_flags(
        resume_unfinished=resume_unfinished,
        resume_errored=resume_errored,
        restart_errored=restart_errored,
    )
    assert {name: kind.value for name, kind in seen.items()} == {
        "finished": ours.finished,
        "unfinished": ours.unfinished,
        "errored": ours.errored,
    }


def _recorded_checkpoints(directory: Path) -> list[str | None]:
    from airflow_tune_restore.experiments.state import parse_state

    state = parse_state(next(directory.glob("experiment_state-*")).read_bytes())
    found = [trial.recorded_checkpoint(checkpoint_fields()) for trial in state.trials]
    return [checkpoint.name if checkpoint else None for checkpoint in found]


def test_golden_rows_are_what_ray_wrote():
    """The builder must not drift from real rows: it holds the very fields of the golden ones."""
    from tests.support.experiments.built import KILLED

    golden = json.loads(next(KILLED.glob("experiment_state-*")).read_text())
    built = make_row("x")
    assert json.loads(built[0]).keys() == json.loads(golden["trial_data"][0][0]).keys()
    assert json.loads(built[1]).keys() == json.loads(golden["trial_data"][0][1]).keys()
