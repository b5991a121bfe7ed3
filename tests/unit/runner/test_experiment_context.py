"""How a whole-experiment run is judged that ended although samples are left."""

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.tune")

from airflow_tune_restore.exceptions import RunnerError
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.planned import PlannedExperiment
from airflow_tune_restore.protocol.request import Result, RunnerRequest, TrialAction
from airflow_tune_restore.runner.outcome import Ending
from airflow_tune_restore.runner.tune.experiment_context import ExperimentContext
from airflow_tune_restore.runner.tune.experiment_controller import ExperimentController


def planned(actions, **others) -> PlannedExperiment:
    trials = [
        {
            "trial_id": name,
            "action": action,
            "new_trial_id": f"{name}2" if action == "restart" else None,
        }
        for name, action in actions.items()
    ]
    plan = {"base": {"name": ""}, "trials": trials, "samples_left": 2, **others}
    return PlannedExperiment.read(plan)


@pytest.fixture
def context(tmp_path):
    """A run that was to draw two samples, and has drawn one."""
    request = RunnerRequest(
        experiment="", restore_id="", trial_id=layout.WHOLE_EXPERIMENT, attempt=1, trainable="",
        trainable_name="", action=TrialAction.RUN,
    )  # fmt: skip
    made = ExperimentContext(
        store=None, request=request, source_key="", is_seed=True, staging=tmp_path,
        check_fence=lambda: None,
        check_fence_lately=lambda: None, room=None, reporter=None, started_at="",
        planned=planned({"old": "resume"}, continues_search=True),
    )  # fmt: skip
    made.saved = {"old": "TERMINATED", "new": "TERMINATED"}
    made.search_has_ended = True
    return made


def missing(context, *, total, was_ended):
    search_alg = SimpleNamespace(total_samples=total, _finished=was_ended)
    trials = [SimpleNamespace(trial_id=trial_id) for trial_id in context.saved]
    controller = SimpleNamespace(context=context, _search_alg=search_alg, _trials=trials)
    return ExperimentController._missing_samples(controller)


@pytest.mark.parametrize(
    ("total", "was_ended", "count"),
    [(3, False, 1), (3, True, 0), (0, True, 1)],
    ids=["miscounted", "ended early", "never restored"],
)
def test_samples_are_missing_unless_the_search_was_ended(context, total, was_ended, count):
    assert missing(context, total=total, was_ended=was_ended) == count
    context.planned = planned({"old": "resume"})
    assert missing(context, total=total, was_ended=was_ended) == 0


def test_a_run_that_lacks_samples_has_not_ended(context):
    assert context.judge(was_stopped=False) == Ending(Result.FINISHED)
    context.missing_samples = 1
    with pytest.raises(RunnerError, match="0 unfinished trials and 1 sample not suggested"):
        context.judge(was_stopped=False)
    assert context.judge(was_stopped=True).result is Result.INTERRUPTED


def test_it_is_sized_by_the_trials_that_run_and_all_that_can_be_read_if_it_draws(context):
    actions = {"a": "resume", "b": "restart", "c": "keep"}
    context.planned = planned(actions)
    context.__post_init__()
    rows = [f'{{"trial_id": "{name}"}}' for name in ("a", "b", "b2", "c", "other")]
    rows += ["oops", "[]", "{}", "[" * 100_000, '{"trial_id": ["a"]}']
    assert [row[14:-2] for row in rows if context.counts_for_size(row)] == ["a", "b", "b2"]
    context.planned = planned(actions, continues_search=True)
    assert all(context.counts_for_size(row) for row in rows)


def test_a_trial_that_ray_could_not_restore_is_refused_in_each_attempt(context):
    """The snapshot of the attempt before does not hold it."""
    actions = {"a": "resume", "b": "restart", "gone": "resume", "kept": "keep", "also": "restart"}
    context.planned = planned(actions)
    context.__post_init__()
    context.left_out = {"gone": ValueError("no row")}
    written = []
    controller = SimpleNamespace(
        context=context, _trials=[SimpleNamespace(trial_id=name) for name in ("a", "b2")],
        _write=lambda request, ending, _trial: written.append((request.trial_id, ending)),
    )  # fmt: skip
    ExperimentController._refuse_left_out(controller)
    why = "Ray cannot restore it (an earlier attempt left it out)"
    assert written == [
        ("also", Ending(Result.REFUSED, "RunnerError", why)),
        (
            "gone",
            Ending(Result.REFUSED, "RunnerError", "Ray cannot restore it (ValueError: no row)"),
        ),
    ]


@pytest.mark.parametrize("address", [None, "auto"])
@pytest.mark.parametrize("trial_id", ["old", "new"])
def test_a_sample_without_room_on_a_private_ray_may_have_it_on_the_next(context, trial_id, address):
    context.request = dataclasses.replace(context.request, address=address)
    stopped = []
    controller = SimpleNamespace(
        context=context, get_trial=lambda name: SimpleNamespace(trial_id=name),
        _stop_unfinished=stopped.append,
    )  # fmt: skip
    ExperimentController.give_up(controller, trial_id, "No room.")
    (why,) = context.given_up.values()
    is_advised = "the next private Ray will be large enough for this trial" in why
    assert is_advised is (trial_id == "new" and address is None)
    assert why.startswith("No room.")
    assert [trial.trial_id for trial in stopped] == [trial_id]


@pytest.mark.parametrize(
    ("own_tasks", "followers"),
    [
        (None, ["a", "b", layout.WHOLE_EXPERIMENT]),
        (1, ["a", *[layout.WHOLE_EXPERIMENT] * 2]),
        (0, [layout.WHOLE_EXPERIMENT] * 3),
    ],
)
def test_trials_without_a_task_are_followed_and_stopped_with_the_samples(
    context, own_tasks, followers
):
    plan = planned({"kept": "keep", "a": "resume", "b": "restart"}, own_tasks=own_tasks)
    context = dataclasses.replace(context, planned=plan)
    trials = [SimpleNamespace(trial_id=trial_id) for trial_id in ("a", "b2", "new")]
    assert [context.follower_of(trial) for trial in trials] == followers
