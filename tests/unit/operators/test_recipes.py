"""Each experiment of one run is restored by its own recipe, wherever its trials run."""

import json
import sys

import pytest
from airflow.sdk import DAG
from kubernetes.client import ApiClient

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.ray_jobs import RayJobsHook
from airflow_tune_restore.operators.build_restore_plan import BuildRestorePlanOperator
from airflow_tune_restore.operators.check_restores import CheckRestoresOperator
from airflow_tune_restore.operators.commit_restore import CommitRestoreOperator
from airflow_tune_restore.operators.continue_search import ContinueSearchOperator
from airflow_tune_restore.operators.kubernetes.restore_trial import RestoreTrialKubernetesOperator
from airflow_tune_restore.operators.restore_trial import RestoreTrialOperator
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import CheckAnswer, Problem
from airflow_tune_restore.restore.plan import read_plan
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
from airflow_tune_restore.version_compat import AirflowFailException
from tests.support.airflow.context import make_context
from tests.support.airflow.names import DagSerialization, TaskDeferred
from tests.support.airflow.states import FAILED, SKIPPED, SUCCESS, plan, run
from tests.support.checks import FITS, answer_all
from tests.support.experiments.built import make_experiment, make_row
from tests.support.ray.fake_jobs import FakeJobs
from tests.support.records import ending, leave_attempt

TEAM_A = {
    "trainable": "team_a.train:train",
    "imports": ["team_a.register"],
    "python": "/opt/a/python",
    "image": "registry/team-a:1",
    "env": {"TEAM": "a"},
    "runtime_env": {"working_dir": "s3://code/a.zip", "pip": ["lightgbm"]},
}
TEAM_B = {
    "trainable": "team_b.train:train",
    "image": "registry/team-b:2",
    "env": {"TEAM": "b"},
    "runtime_env": {"pip": ["torch"]},
}
KEYED = {"a*": TEAM_A, "b*": TEAM_B}
MODULE = "left_a_mark_when_it_was_imported"


@pytest.fixture
def make(tmp_path):
    """Makes an experiment with an errored trial, and the recipe that its sweep wrote."""

    def build(name, own=None, **arguments):
        rows = arguments.pop("rows", [make_row("t", status="ERROR")])
        experiment = make_experiment(tmp_path / name, rows, **arguments)
        if own is not None:
            body = own if isinstance(own, bytes) else json.dumps(own).encode()
            open_store(str(experiment)).put(layout.RECIPE, body)
        return experiment

    return build


def outcomes_of(pushed):
    return {each["experiment"].rpartition("/")[2]: each for each in pushed["outcomes"]}


def end(pushed):
    """Return the states of commit and done, and the table of the commit."""
    for each in pushed["outcomes"]:
        if each["outcome"] == "restored":
            store = open_store(each["experiment"])
            leave_attempt(store, read_plan(store, each["restore_id"]), "t")
    outcomes = pushed["outcomes"]
    committed, _, summary = run(CommitRestoreOperator(task_id="commit", outcomes=outcomes))
    done, _, _ = run(CheckRestoresOperator(task_id="done", outcomes=outcomes))
    return committed, done, summary["experiments"]


def test_an_unknown_experiment_is_left_alone_and_the_others_are_restored(make, launcher, capfd):
    experiments = [make("a1"), make("b1"), make("c1"), make("d1", {"trainable": "team_d.x:t"})]
    state, items, pushed = run(plan(experiments, trainable=KEYED, recipes=["team_d.*"]))
    assert (state, [item["label"] for item in items]) == (SUCCESS, ["a1 t", "b1 t", "d1 t"])
    outcomes = outcomes_of(pushed)
    assert {name: each["outcome"] for name, each in outcomes.items()} == {
        "a1": "restored",
        "b1": "restored",
        "c1": "unknown",
        "d1": "restored",
    }
    assert 'Add the line "train": "package.module:attribute",' in outcomes["c1"]["reason"]
    committed, done, table = end(pushed)
    assert (committed, done) == (SUCCESS, SUCCESS)
    assert {line["experiment"].rpartition("/")[2]: line["outcome"] for line in table} == {
        "a1": "restored",
        "b1": "restored",
        "c1": "unknown",
        "d1": "restored",
    }
    log = capfd.readouterr().out
    assert "c1 is not restored" in log
    assert "no trainable" in log
    assert not (experiments[2] / layout.ROOT).exists()


@pytest.mark.parametrize("launcher_name", ["local", "ray"])
def test_an_experiment_that_a_glob_or_its_own_recipe_names_is_not_taken_by_name_alone(
    make, launcher, launcher_name
):
    rows = [make_row("t", status="ERROR", trainable_name="other")]
    own = {"trainable": "team_d.x:t"}
    experiments = [make("a/a1"), make("b/b1", rows=rows), make("d/d1", own)]
    keyed = {"a*": "m:t", "other": "m:t"}
    operator = plan(experiments, trainable=keyed, recipes=True, launcher=launcher_name)
    _, _, pushed = run(operator)
    by_name = {name: each["by_name"] for name, each in outcomes_of(pushed).items()}
    assert by_name == {"a1": False, "b1": True, "d1": False}


def test_an_unknown_experiment_fails_the_run_if_it_shall(make, launcher):
    state, items, pushed = run(plan([make("a1"), make("c1")], trainable=KEYED, on_unknown="fail"))
    assert (state, [item["label"] for item in items]) == (SUCCESS, ["a1 t"])
    assert outcomes_of(pushed)["c1"]["outcome"] == "refused"
    done = CheckRestoresOperator(task_id="done", outcomes=pushed["outcomes"])
    with pytest.raises(AirflowFailException, match=r"1 experiment\. .*c1: no trainable is given"):
        done.execute(make_context())


def test_with_nothing_but_unknown_experiments_the_plan_is_skipped(make, launcher):
    experiments = [make("c1"), make("c2", b"{")]
    state, _, pushed = run(plan(experiments, trainable=KEYED, recipes=True))
    assert state == SKIPPED
    committed, done, table = end(pushed)
    assert (committed, done) == (SUCCESS, SUCCESS)
    assert [line["outcome"] for line in table] == ["unknown", "unknown"]
    assert "recipe.json cannot be used" in outcomes_of(pushed)["c2"]["reason"]
    state, _, pushed = run(plan(experiments, trainable=KEYED, on_unknown="fail"))
    assert (state, end(pushed)[1]) == (SUCCESS, FAILED)


def test_no_recipe_is_read_where_it_is_not_allowed(make, launcher):
    state, _, pushed = run(plan([make("c1", TEAM_A)], trainable=KEYED))
    assert (state, outcomes_of(pushed)["c1"]["outcome"]) == (SKIPPED, "unknown")


def test_each_code_is_checked_by_a_process_of_its_own(make, launcher):
    keyed = {**KEYED, "ab*": {**TEAM_A, "resume_errored": False, "restart_errored": True}}
    run(plan([make("a1"), make("ab1"), make("b1")], trainable=keyed))
    asked = [
        (request.trainable, list(request.imports), len(request.experiments))
        for request in launcher.checked
    ]
    assert asked == [
        ("team_a.train:train", ["team_a.register"], 2),  # only their flags differ
        ("team_b.train:train", [], 1),
    ]


def test_a_trainable_that_cannot_be_used_costs_its_own_experiments(make, launcher):
    def check(request, _timeout):
        if request.trainable == "team_b.train:train":
            raise InvalidInputError("trainable team_b.train:train: it does not exist.")
        return [FITS for _ in request.experiments]

    launcher.check = check
    state, items, pushed = run(plan([make("a1"), make("b1")], trainable=KEYED))
    assert (state, [item["label"] for item in items]) == (SUCCESS, ["a1 t"])
    assert outcomes_of(pushed)["b1"]["outcome"] == "refused"
    assert "does not exist" in outcomes_of(pushed)["b1"]["reason"]


def test_an_experiment_is_compared_with_its_own_trainable(make, launcher):
    misfit = CheckAnswer(experiment="", problem=Problem.MISFIT, message="It is another one.")

    def check(request, _timeout):
        return answer_all(request, misfit if request.trainable == "team_b.train:train" else FITS)

    launcher.check = check
    _, items, pushed = run(plan([make("a1"), make("b1")], trainable=KEYED))
    assert [item["label"] for item in items] == ["a1 t"]
    assert outcomes_of(pushed)["b1"]["outcome"] == "misfit"


def test_what_a_recipe_names_is_not_imported_by_a_task(make, launcher, tmp_path, monkeypatch):
    """The module lies where this process would find it, and would leave a mark."""
    (tmp_path / f"{MODULE}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    own = {
        **dict.fromkeys(("trainable", "param_space", "search_alg"), f"{MODULE}:x"),
        "imports": [MODULE],
        "python": f"{tmp_path}/python",
    }
    state, items, _ = run(plan([make("c1", own)], trainable=None, recipes=True))
    store = open_store(items[0]["experiment"])
    launcher.on_start = ending(store)
    trial(items[0], trainable=None, recipes=True).execute(make_context())
    assert state == SUCCESS
    assert MODULE not in sys.modules
    assert not (tmp_path / "mark").exists()
    assert launcher.requests[0].trainable == f"{MODULE}:x"


# where trials run


def trial(item, **arguments) -> RestoreTrialOperator:
    return RestoreTrialOperator(task_id="trial", trial=item, **arguments)


@pytest.fixture
def items(make):
    """One item for an experiment of each team."""
    planned = plan([make("a1"), make("b1")], trainable=KEYED, launcher="ray")
    return planned.execute(make_context())


def test_on_the_worker_each_runner_has_its_own_interpreter_and_environment(items, launcher):
    started = []
    for item in items:
        launcher.on_start = ending(open_store(item["experiment"]))
        trial(item, trainable=KEYED, env={"ALL": "1", "TEAM": "x"}, python="/usr/python").execute(
            make_context()
        )
        request = launcher.requests[-1]
        started.append((request.trainable, list(request.imports), launcher.arguments))
    assert started == [
        (
            "team_a.train:train",
            ["team_a.register"],
            {"python": "/opt/a/python", "env": {"ALL": "1", "TEAM": "a"}, "runner_user": None},
        ),
        (
            "team_b.train:train",
            [],
            {"python": "/usr/python", "env": {"ALL": "1", "TEAM": "b"}, "runner_user": None},
        ),
    ]


def test_on_the_worker_an_image_is_not_used(items, launcher, capfd):
    launcher.on_start = ending(open_store(items[0]["experiment"]))
    trial(items[0], trainable=KEYED).execute(make_context())
    assert "has image, which counts on other launchers only" in capfd.readouterr().out


def test_each_ray_job_has_its_own_runtime_env(items, monkeypatch):
    jobs = FakeJobs()
    monkeypatch.setattr(RayJobsHook, "jobs", lambda self: jobs)
    connection = {"conn_type": "ray_jobs", "host": "head", "extra": {"runtime_env": {"uv": ["x"]}}}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_JOBS_DEFAULT", json.dumps(connection))
    for item in items:
        operator = trial(
            item,
            trainable=KEYED,
            launcher="ray",
            runtime_env={"config": {"a": 1}},
            env={"ALL": "1"},
        )
        with pytest.raises(TaskDeferred):
            operator.execute(make_context())
    first, second = (posted["runtime_env"] for posted in jobs.posted)
    assert first["working_dir"] == "s3://code/a.zip"
    assert "working_dir" not in second
    assert (first["pip"], second["pip"]) == (["lightgbm"], ["torch"])
    assert first["uv"] == second["uv"] == ["x"]
    assert first["config"] == second["config"] == {"a": 1}
    assert {(e["env_vars"]["ALL"], e["env_vars"]["TEAM"]) for e in (first, second)} == {
        ("1", "a"),
        ("1", "b"),
    }


def test_each_pod_has_its_own_image_and_environment(items):
    made = []
    for item in items:
        operator = RestoreTrialKubernetesOperator(
            task_id="trial",
            trial=item,
            trainable=KEYED,
            image="registry/all:0",
            namespace="n",
            env={"ALL": "1"},
        )
        task = operator.open_task()
        request = operator.claim(task)
        operator._set_request(request, "score")
        pod = operator.build_pod_request_obj(None, dry_run=True)
        (container,) = ApiClient().sanitize_for_serialization(pod)["spec"]["containers"]
        env = {each["name"]: each.get("value") for each in container["env"]}
        made.append((container["image"], container["command"][0], env["TEAM"], env["ALL"]))
        assert request.trainable == f"team_{env['TEAM']}.train:train"
    assert made == [
        ("registry/team-a:1", "/opt/a/python", "a", "1"),
        ("registry/team-b:2", "python", "b", "1"),
    ]


def test_a_search_is_continued_by_the_recipe_of_its_sweep(make, launcher):
    done = make_row("done", last_result={"training_iteration": 4, "done": True})
    own = {"trainable": "team_c.own:train", "env": {"TEAM": "c"}, "imports": ["team_c.register"]}
    experiment = make("c1", own, rows=[done], total_samples=4)
    launcher.on_start = ending(open_store(str(experiment)))
    operator = ContinueSearchOperator(
        task_id="continue_search", experiment=str(experiment), recipes=["team_c.*"]
    )
    with pytest.raises(AirflowFailException, match=r"recipes=True alone allows"):
        operator.execute(make_context())
    assert launcher.requests == launcher.checked == []
    operator = ContinueSearchOperator(
        task_id="continue_search", experiment=str(experiment), recipes=True, stale_after=0
    )
    operator.execute(make_context())
    (checked,), (started,) = launcher.checked, launcher.requests
    assert checked.trainable == started.trainable == "team_c.own:train"
    assert list(started.imports) == ["team_c.register"]
    assert launcher.arguments["env"] == {"TEAM": "c"}


def test_a_recipe_that_is_gone_when_the_trial_runs_fails_that_trial(make, launcher):
    experiment = make("c1", {"trainable": "team_c.own:train"})
    (item,) = plan([experiment], trainable=None, recipes=True).execute(make_context())
    (experiment / layout.RECIPE).unlink()
    with pytest.raises(AirflowFailException, match="no trainable is given for train"):
        trial(item, recipes=True).execute(make_context())
    assert launcher.requests == []


# the DAG


def group(**arguments) -> DAG:
    with DAG("d") as dag:
        TuneRestoreTaskGroup(**{"prefix": "/data", **arguments})
    return dag


@pytest.mark.parametrize("launcher", ["local", "ray", "kubernetes"])
def test_a_mapping_reaches_whoever_plans_or_runs(launcher):
    dag = group(trainable=KEYED, recipes=["team_d.*"], launcher=launcher, on_unknown="fail")
    again = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    assert again.task_dict.keys() == dag.task_dict.keys()
    assert again.task_dict["restore.plan"].trainable == KEYED
    planned = dag.task_dict["restore.plan"]
    assert (planned.trainable, planned.recipes, planned.prefix) == (KEYED, ["team_d.*"], "/data")
    assert planned.on_unknown == "fail"
    for name in ("trial", "continue_search"):
        mapped = dag.task_dict[f"restore.{name}"]
        own = mapped.partial_kwargs
        assert (own["trainable"], own["recipes"], own["prefix"]) == (KEYED, ["team_d.*"], "/data")


def test_recipes_alone_are_enough():
    group(recipes=True)
    with pytest.raises(InvalidInputError, match="names no trainable"):
        group()


def test_values_of_a_mapping_may_be_templates(make, launcher):
    keyed = {"a*": {"trainable": "{{ params.code }}", "python": "{{ params.python }}"}}
    with DAG("d", params={"code": "m:t", "python": ""}):
        operator = plan([make("a1")], trainable=keyed)
    context = {**make_context(), "params": {"code": "m:t", "python": ""}}
    operator.render_template_fields(context)
    state, _, _ = run(operator, context)
    assert (state, launcher.checked[0].trainable) == (SUCCESS, "m:t")
    assert launcher.arguments["python"] is None


def train(config):
    """Stand in for a trainable that was given as it is."""


HERE = rf"trainable\[\"train\"\]='{__name__}:train'"
HERE_IN_RECORD = rf"trainable\[\"train\"\]\[\"trainable\"\]='{__name__}:train'"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trainable": {"train": train}}, HERE),
        ({"trainable": {"train": {"trainable": train}}}, HERE_IN_RECORD),
        ({"trainable": {"x": "{{ params.x }}", "train": {"trainable": train}}}, HERE_IN_RECORD),
        (
            {"trainable": {"train": {"trainable": "m:t", "param_space": {"lr": 1}}}},
            "object of dict",
        ),
        (
            {"trainable": {"train": {"trainable": "m:t", "pyton": "p"}}},
            "no field 'pyton' .did you mean 'python'",
        ),
        ({"trainable": {"x": "{{ params.x }}", "train": {}}}, "it names no trainable"),
        ({"trainable": {"train": None}}, "a NoneType is neither"),
        ({"trainable": {}}, "names no trainable"),
        ({"trainable": {"{{ params.x }}": "m:t"}}, "does not render a template in a key"),
        ({"trainable": {"s3://conn@b/**": "m:t"}}, "without a connection"),
        ({"trainable": "m:t", "recipes": "{{ params.x }}"}, "does not render a template"),
        ({"trainable": "m:t", "recipes": 1}, "neither True nor False nor a list of patterns"),
        ({"trainable": "m:t", "on_unknown": "ignore"}, "neither 'skip' nor 'fail'"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_an_error_of_the_dag(arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        group(**arguments)


def test_a_rendered_trainable_that_is_empty_is_none(make, launcher):
    """A plan may do without: the runners then check their own."""
    operator = BuildRestorePlanOperator(
        task_id="plan",
        experiments=[str(make("a1"))],
        trainable="{{ var.value.get('code') }}",
        resume_errored=True,
        stale_after=0,
    )
    for rendered in ("", "None", None):
        operator.trainable = rendered
        state, items, _ = run(operator, make_context(run_id="same"))
        assert (state, len(items)) == (SUCCESS, 1)
    assert launcher.checked == []
