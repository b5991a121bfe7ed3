"""Which recipe restores which experiment, and what a plan makes of it."""

import json
from datetime import timedelta

import pytest

from airflow_tune_restore.exceptions import (
    ExperimentRunningError,
    InvalidInputError,
    StorageError,
    UnknownTrainableError,
)
from airflow_tune_restore.experiments.examine import examine
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.restore.prepare import (
    plan_again,
    prepare_continued_search,
    prepare_restore,
    preview_restore,
)
from airflow_tune_restore.restore.prepared import PreparedRestore, PrepareOptions
from airflow_tune_restore.restore.recipe import ALL_MODULES, Recipe
from airflow_tune_restore.restore.recipes import (
    MAX_RECIPE_BYTES,
    Recipes,
    parse_modules,
    read_recipe,
)
from airflow_tune_restore.storage.local import LocalStore
from tests.support.experiments.built import KILLED, make_experiment, make_row
from tests.support.storage.counting import Clock, CountingStore

OWN = {"trainable": "team_a.own:train"}
NAME = "train"
"""The name that the golden tuner.pkl records."""


@pytest.fixture
def store():
    """The place of an experiment, `memory://bucket/team_a/lr`."""
    return CountingStore.new(Clock()).at("bucket/team_a/lr")


def write(store, document=OWN):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    store.put(layout.RECIPE, body)


def chosen(store, trainable=None, *, name="train", **arguments) -> str:
    return Recipes.parse(trainable, **arguments).choose(store, name).trainable


KEYED = {
    "**/lr": "m:short",
    "team_a/**": "m:longer",
    "train": "m:named",
    "*": "m:others",
}


def test_the_longest_glob_that_matches_comes_first(store):
    write(store)
    assert chosen(store, KEYED, recipes=True) == "m:longer"
    order = dict(reversed(KEYED.items()))
    assert chosen(store, order, recipes=True) == "m:longer"


def test_then_the_recorded_name_then_the_own_recipe_then_the_others(store):
    keyed = {"team_b/**": "m:no", "train": "m:named", "*": "m:others"}
    write(store)
    assert chosen(store, keyed, recipes=True) == "m:named"
    assert chosen(store, keyed, recipes=True, name="other") == "team_a.own:train"
    assert chosen(store, keyed, recipes=["team_a.*"], name="other") == "team_a.own:train"
    assert chosen(store, keyed, name="other") == "m:others"
    assert chosen(store, "m:others", recipes=True) == "team_a.own:train"
    store.delete(layout.RECIPE)
    assert chosen(store, keyed, recipes=True, name="other") == "m:others"
    assert chosen(store, "m:others", recipes=True) == "m:others"
    assert chosen(store, {"**": "m:all"}, recipes=True) == "m:all"


def test_of_globs_of_the_same_length_the_first_counts(store):
    assert chosen(store, {"team_a/*": "m:first", "team_?/*": "m:second"}) == "m:first"


@pytest.mark.parametrize("name", ["team_b/**", "lr*", "*", "**", "a/b"])
def test_a_recorded_name_that_equals_a_glob_is_not_found_by_it(store, name):
    keyed = {"team_b/**": "m:b", "a/b": "m:ab", "lrx*": "m:c"}
    with pytest.raises(UnknownTrainableError):
        chosen(store, keyed, name=name)


def test_a_glob_counts_from_the_prefix(store):
    keyed = {"lr/**": "m:t"}
    with pytest.raises(UnknownTrainableError):
        chosen(store, keyed)
    assert chosen(store, keyed, prefix="memory://bucket/team_a") == "m:t"
    assert chosen(store, {"memory://bucket/team_a/**": "m:t"}) == "m:t"


@pytest.mark.parametrize("trainable", ["m:t", {"train": "m:t"}, {"lr": "m:t", "*": "m:t"}, None])
def test_no_recipe_is_read_unless_it_is_allowed(store, trainable):
    write(store)
    store.asked.clear()
    try:
        assert chosen(store, trainable) == "m:t"
    except UnknownTrainableError:
        assert trainable is None
    assert not store.asked


def test_a_recipe_is_read_once_and_not_where_another_comes_first(store):
    write(store)
    assert chosen(store, recipes=True) == "team_a.own:train"
    assert store.asked == {"get": 1, "put": 1}
    assert chosen(store, {"train": "m:t"}, recipes=True) == "m:t"
    assert store.asked == {"get": 1, "put": 1}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "required field `trainable`"),
        (b'{"trainable": "a\\u0000:b"}', "no name can have"),
        (b'{"trainable": "m:t", "schema": 2}', "schema"),
        (b'{"trainable": "m:t", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", ""),
        (b" " * (MAX_RECIPE_BYTES + 1), "65536"),
        ({"trainable": "os:system"}, "the module os, which is not one of those"),
        ({**OWN, "python": "/bin/sh"}, "recipes=True alone allows"),
        ({"trainable": "m:\x1b[31m"}, "m"),
    ],
)
def test_a_recipe_that_cannot_be_used_leaves_its_experiment_alone(store, document, words):
    """The trainable for all others is not a way out: it may be another team's."""
    write(store, document)
    with pytest.raises(UnknownTrainableError) as raised:
        chosen(store, {"*": "m:others"}, recipes=["team_a.*"])
    assert ".tune_restore/recipe.json cannot be used: " in raised.value.problem
    assert words in raised.value.problem
    assert str(raised.value).isprintable()
    assert chosen(store, {"train": "m:named"}, recipes=["team_a.*"]) == "m:named"


def test_a_link_in_the_place_of_a_recipe_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text('{"trainable": "secret:train"}')
    recipe = tmp_path / "exp" / layout.RECIPE
    recipe.parent.mkdir(parents=True)
    recipe.symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInputError, match="cannot be used"):
        read_recipe(LocalStore(tmp_path / "exp"))


def test_a_store_that_does_not_answer_is_not_an_experiment_without_a_recipe(store, monkeypatch):
    def fail(*_args, **_more):
        raise StorageError("no answer")

    monkeypatch.setattr(store, "get", fail)
    with pytest.raises(StorageError, match="no answer"):
        chosen(store, "m:others", recipes=True)


def test_an_unknown_experiment_is_told_with_the_line_to_add(store):
    with pytest.raises(UnknownTrainableError) as raised:
        chosen(store, {"other": "m:t"})
    assert str(raised.value) == (
        "memory://bucket/team_a/lr: no trainable is given for train. Add the line "
        '"train": "package.module:attribute", to trainable={…} (in the shell: '
        "--trainable train=package.module:attribute)."
    )


@pytest.mark.parametrize("name", ["", "team/train", "*", "a?", "x[1]", "a\x1b[0m", "x" * 5000])
def test_the_line_to_add_restores_the_experiment(store, name):
    """A name that cannot be a key is replaced by the place of the experiment."""
    with pytest.raises(UnknownTrainableError) as raised:
        chosen(store, {"other": "m:t"}, name=name)
    line = str(raised.value).partition("the line ")[2].partition(" to trainable=")[0]
    keyed = json.loads(f"{{{line.rstrip(',')}}}")
    assert chosen(store, keyed, name=name) == "package.module:attribute"


def test_the_line_to_add_fits_one_experiment_alone():
    store = CountingStore.new(Clock()).at("bucket/a[1]*")
    with pytest.raises(UnknownTrainableError) as raised:
        chosen(store, {"other": "m:t"}, name="")
    keyed = {raised.value.key: "m:t"}
    assert chosen(store, keyed, name="") == "m:t"
    with pytest.raises(UnknownTrainableError):
        chosen(CountingStore.new(Clock()).at("bucket/a1b"), keyed, name="")


@pytest.mark.parametrize(
    ("trainable", "words"),
    [
        (5, "neither text nor a mapping"),
        ({}, "names no trainable"),
        ({"*": "m:t", "**": "m:u"}, "Two trainables are given for all"),
        ({"": "m:t"}, "names no experiment"),
        ({" ": "m:t"}, "names no experiment"),
        ({"/": "m:t"}, "holds no pattern"),
        ({"s3://conn@b/**": "m:t"}, "without a connection"),
        ({"{{ params.team }}/**": "m:t"}, "does not render a template in a key"),
        ({"train": 5}, r'trainable\["train"\]: a int is neither'),
        (
            {"train": {"trainable": "m:t", "pyton": "x"}},
            r'trainable\["train"\]: .* no field .pyton. .did you mean .python',
        ),
        ({"train": {"trainable": "m:t", "zzz": "x"}}, "no field 'zzz' .it has schema, trainable, "),
        ("m:\0", r'trainable\["\*"\]: .*no name can have'),
    ],
)
def test_a_mapping_that_is_not_valid_is_refused(trainable, words):
    with pytest.raises(InvalidInputError, match=words):
        Recipes.parse(trainable)


@pytest.mark.parametrize("trainable", [None, "", " "])
def test_without_a_trainable_nothing_is_restored(store, trainable):
    with pytest.raises(UnknownTrainableError):
        chosen(store, trainable)


@pytest.mark.parametrize(
    ("value", "modules"),
    [(True, (ALL_MODULES,)), (False, ()), ([], ()), (["a.*", " b "], ("a.*", "b"))],
)
def test_what_recipes_allows(value, modules):
    assert parse_modules(value) == modules


@pytest.mark.parametrize("value", [None, 1, "", "a.*", "True", [""], [5], {"a": 1}, {"a"}])
def test_other_values_of_recipes_are_refused(value):
    with pytest.raises(InvalidInputError, match="neither True nor False nor a list of patterns"):
        parse_modules(value)


def test_whether_one_recipe_is_for_all():
    assert Recipes.parse("m:t").is_for_all
    assert Recipes.parse({"*": "m:t"}).is_for_all
    assert not Recipes.parse({"train": "m:t"}).is_for_all
    assert not Recipes.parse({"a/**": "m:t", "*": "m:t"}).is_for_all
    assert not Recipes.parse("m:t", recipes=True).is_for_all


# what a plan makes of it

ENDED = {"training_iteration": 4, "done": True}
ROWS = [
    make_row("ended", last_result=ENDED),
    make_row("failed", status="ERROR"),
    make_row("hung", status="RUNNING"),
]


def options(trainable, recipes=False, **more) -> PrepareOptions:
    return PrepareOptions(
        recipes=Recipes.parse(trainable, recipes=recipes),
        stale_after=timedelta(0),
        **more,
    )


def actions(plan: RestorePlan) -> dict[str, str]:
    return {trial.trial_id: str(trial.action) for trial in plan.trials}


@pytest.fixture
def sweep(tmp_path):
    return LocalStore(make_experiment(tmp_path / "sweep", ROWS))


def test_flags_of_a_recipe_decide_the_plan(sweep):
    flags = {"resume_errored": True, "resume_unfinished": False, "strategy": "per_trial"}
    keyed = {NAME: {"trainable": "m:t", **flags}}
    prepared = prepare_restore(sweep, "r1", options(keyed))
    assert actions(prepared.plan) == {"ended": "keep", "failed": "resume", "hung": "terminate"}
    assert prepared.plan.choices.flags == ResumeFlags.from_flags(
        resume_errored=True, resume_unfinished=False
    )
    assert prepared.options.recipe == Recipe.parse(keyed[NAME])


def test_a_recipe_that_runs_finished_trials_reads_their_rows(sweep):
    keyed = {NAME: {"trainable": "m:t", "resume_config": {"finished": "restart"}}}
    prepared = prepare_restore(sweep, "r1", options(keyed))
    assert actions(prepared.plan)["ended"] == "restart"
    plan, refusals = preview_restore(sweep, options(keyed))
    assert (actions(plan)["ended"], refusals) == ("restart", [])


def test_a_recipe_that_leaves_finished_trials_alone_wins_over_the_dag(sweep):
    dag = PlanChoices(flags=ResumeFlags(finished=ResumeType.RESTART))
    keyed = {NAME: {"trainable": "m:t", "resume_config": {"finished": "skip"}}}
    prepared = prepare_restore(sweep, "r1", options(keyed, choices=dag))
    assert actions(prepared.plan)["ended"] == "keep"


def test_the_recipe_of_the_sweep_decides_the_plan(sweep):
    write(sweep, {"trainable": "m:t", "resume_errored": True})
    prepared = prepare_restore(sweep, "r1", options(None, recipes=["m"]))
    assert actions(prepared.plan)["failed"] == "resume"
    write(sweep, {"trainable": "n:t", "resume_errored": True})
    with pytest.raises(UnknownTrainableError, match="the module n, which is not one of those"):
        prepare_restore(sweep, "r1", options(None, recipes=["m"]))


@pytest.mark.parametrize(
    ("trainable", "recipes", "reads"),
    [("m:t", False, 0), ({NAME: "m:t"}, True, 0), ("m:t", True, 1), (None, ["m"], 1)],
)
def test_a_plan_reads_the_recipe_of_the_sweep_once_or_never(sweep, trainable, recipes, reads):
    store = CountingStore.new(Clock())
    for entry in sweep.walk():
        store.put(entry.name, sweep.get(entry.name))
    write(store, {"trainable": "m:t"})
    prepare_restore(store, "r1", options(trainable, recipes=recipes))
    assert store.got[layout.RECIPE] == reads


def test_a_plan_that_is_made_again_has_the_same_choices(sweep):
    write(sweep, {"trainable": "m:t", "resume_errored": True, "resume_unfinished": False})
    prepared = prepare_restore(sweep, "r1", options(None, recipes=True))
    assert isinstance(prepared, PreparedRestore)
    again = plan_again(prepared)
    assert again.plan.choices == prepared.plan.choices
    assert actions(again.plan) == actions(prepared.plan)


def test_an_unknown_experiment_is_refused_after_a_running_one(sweep):
    unknown = options({"other": "m:t"})
    with pytest.raises(UnknownTrainableError, match=f"no trainable is given for {NAME}"):
        prepare_restore(sweep, "r1", unknown)
    alive = PrepareOptions(recipes=unknown.recipes, stale_after=timedelta(hours=1))
    with pytest.raises(ExperimentRunningError):
        prepare_restore(sweep, "r1", alive)


@pytest.fixture
def unstarted(tmp_path):
    """An experiment whose driver died before its first snapshot."""
    directory = tmp_path / "unstarted"
    directory.mkdir()
    (directory / "tuner.pkl").write_bytes((KILLED / "tuner.pkl").read_bytes())
    return LocalStore(directory)


def test_an_experiment_that_never_started_is_started_with_the_param_space_of_its_recipe(unstarted):
    without, with_space = {NAME: "m:t"}, {NAME: {"trainable": "m:t", "param_space": "m:space"}}
    with pytest.raises(InvalidInputError, match="With a param_space"):
        prepare_restore(unstarted, "r1", options(without))
    for prepare in (prepare_restore, prepare_continued_search):
        prepared = prepare(unstarted, "r1", options(with_space))
        assert prepared.plan.continues_search
        assert prepared.options.recipe == Recipe.parse(with_space[NAME])
        assert prepared.plan.trainable_name == NAME
    with pytest.raises(UnknownTrainableError, match=NAME):
        prepare_restore(unstarted, "r1", options({"other": with_space[NAME]}))


def test_a_recipe_does_not_make_an_experiment_that_was_not_restored_another_one(tmp_path):
    """Its directory is there before any restore: what is planned and reported stays the same."""
    plain, with_recipe = (
        LocalStore(make_experiment(tmp_path / name / "sweep", ROWS)) for name in ("a", "b")
    )
    write(with_recipe, {"trainable": "m:t"})
    reports = [examine(store, stale_after=timedelta(0)) for store in (plain, with_recipe)]
    assert reports[0].health == reports[1].health
    assert reports[0].reason == reports[1].reason
    plans = [prepare_restore(store, "r1", options("m:t")).plan for store in (plain, with_recipe)]
    assert actions(plans[0]) == actions(plans[1])
    assert plans[0].warnings == plans[1].warnings
    assert plans[0].restore_id == plans[1].restore_id == "r1"


def test_a_recipe_alone_is_not_an_experiment(tmp_path):
    """A sweep may write it before its driver starts."""
    write(LocalStore(tmp_path / "sweep"))
    assert scan(LocalStore(tmp_path)) == []
