"""What a recipe may hold, what it changes, and what one in storage may name."""

import json
import subprocess
import sys

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import airflow_tune_restore
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.restore.choices import PlanChoices
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType
from airflow_tune_restore.restore.recipe import ALL_MODULES, Recipe, ResumeConfig, describe_schema
from tests.support import ROOT

SCHEMA = ROOT / "airflow_tune_restore" / "recipe.schema.json"
EVERYTHING = {
    "schema": 1,
    "trainable": "team_a.train:train",
    "param_space": "team_a.train:space",
    "search_alg": "team_a.train:searcher",
    "imports": ["team_a.register"],
    "python": "/opt/a/bin/python",
    "image": "registry/team-a:1",
    "env": {"A": "1", "EMPTY": ""},
    "runtime_env": {"working_dir": "s3://b/code.zip", "pip": ["lightgbm"]},
    "resume_unfinished": True,
    "resume_errored": False,
    "restart_errored": True,
    "resume_cut_short": True,
    "resume_config": {"finished": "skip"},
    "strategy": "per_trial",
    "fresh_budget": True,
    "trim_results": True,
    "remember_scheduler": True,
    "allow_scratch": True,
    "newest_checkpoint": True,
    "ignore_tuner": True,
    "trust_name": True,
}
"""A recipe with all fields."""

SKIP, RESUME, RESTART = ResumeType


def recipe(**fields) -> Recipe:
    return Recipe.parse({"trainable": "team_a.train:train", **fields})


def read(document) -> Recipe:
    return Recipe.from_json(json.dumps(document).encode())


def test_a_recipe_with_all_fields_is_read_and_written_again():
    assert set(EVERYTHING) == set(Recipe.__struct_fields__)
    assert json.loads(read(EVERYTHING).to_json()) == EVERYTHING
    assert Recipe.from_json(read(EVERYTHING).to_json()) == read(EVERYTHING)


def test_text_is_a_trainable():
    assert Recipe.parse(" m:train ") == Recipe(trainable="m:train")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "a int is neither a trainable as text nor a mapping"),
        (None, "a NoneType is neither"),
        (["m:train"], "a list is neither"),
        ("", "it names no trainable"),
        ({}, "it names no trainable"),
        (
            {"trainable": "m:t", "resume_erored": True},
            "no field .resume_erored. .did you mean .resume_errored",
        ),
        ({"trainable": "m:t", "resume_errored": "maybe"}, r"`bool \| null`.*\$\.resume_errored"),
        ({"trainable": "m:t", "imports": "team_a"}, r"array.*\$\.imports"),
        ({"trainable": "m:t", "schema": 2}, r"\$\.schema"),
        ({"trainable": "m\0:t"}, "holds a character that no name can have"),
        ({"trainable": "m:\ud800"}, "holds a character that no name can have"),
        ({"trainable": "m:t", "imports": ["a\0"]}, "holds a character"),
        ({"trainable": "m:t", "python": "\0"}, "holds a character"),
        ({"trainable": "m:t", "env": {"A": "a\0b"}}, "holds a character"),
        ({"trainable": "m:t", "env": {"A=B": "a"}}, "'A=B' cannot be the name of a variable"),
        ({"trainable": "m:t", "env": {"A": 1}}, r"`str`.*\$\.env"),
        ({"trainable": "m:t", "image": "  "}, "matching regex"),
        ({"trainable": "x" * 1001}, "length <= 1000"),
        ({"trainable": "m:t", "strategy": "all"}, r"\$\.strategy"),
        ({"trainable": "m:t", "resume_config": {"error": "skip"}}, "unknown field `error`"),
        ({1: 2}, "no field '1' .it has schema, "),
    ],
)
def test_what_is_not_a_recipe_is_refused_with_its_field(value, words):
    with pytest.raises(InvalidInputError, match=words):
        Recipe.parse(value)


def test_what_a_template_renders_to_is_read():
    rendered = recipe(resume_errored="True", restart_errored="false", python="None", image="")
    assert (rendered.resume_errored, rendered.restart_errored) == (True, False)
    assert (rendered.python, rendered.image) == (None, None)


@pytest.mark.parametrize(
    ("dag", "own", "expected"),
    [
        ({}, {}, {}),
        ({"resume_errored": True}, {}, {"errored": RESUME}),
        ({}, {"resume_errored": True}, {"errored": RESUME}),
        ({}, {"restart_errored": True}, {"errored": RESTART}),
        ({}, {"resume_errored": True, "restart_errored": True}, {"errored": RESUME}),
        ({"resume_errored": True}, {"restart_errored": True}, {"errored": RESTART}),
        ({"resume_errored": True}, {"resume_errored": False}, {"errored": SKIP}),
        ({"resume_errored": True}, {"restart_errored": False}, {"errored": RESUME}),
        ({"restart_errored": True}, {"resume_errored": False}, {"errored": RESTART}),
        ({"restart_errored": True}, {"restart_errored": False}, {"errored": SKIP}),
        ({}, {"resume_unfinished": False}, {"unfinished": SKIP}),
        ({"resume_unfinished": False}, {"resume_unfinished": True}, {"unfinished": RESUME}),
        ({"resume_unfinished": False}, {}, {"unfinished": SKIP}),
        ({}, {"resume_cut_short": True}, {"cut_short": RESUME}),
        ({"resume_cut_short": True}, {"resume_cut_short": False}, {"cut_short": SKIP}),
        ({}, {"resume_config": {"finished": "restart"}}, {"finished": RESTART}),
        (
            {"resume_errored": True},
            {"resume_errored": False, "resume_config": {"errored": "restart"}},
            {"errored": RESTART},
        ),
        ({"resume_errored": True}, {"resume_config": {"finished": "resume"}},
         {"errored": RESUME, "finished": RESUME}),
    ],
)  # fmt: skip
def test_flags_of_a_recipe_lie_over_those_of_the_dag(dag, own, expected):
    choices = PlanChoices(flags=ResumeFlags.from_flags(**dag))
    once = recipe(**own).apply_to(choices)
    assert once.flags == ResumeFlags(**expected)
    assert recipe(**own).apply_to(once) == once  # a plan that is made again


def test_choices_that_are_not_given_stay():
    dag = PlanChoices(strategy="per_trial", trust_name=True, max_attempts=4)
    assert recipe().apply_to(dag) == dag
    changed = recipe(strategy="whole_experiment", trust_name=False, fresh_budget=True)
    assert changed.apply_to(dag) == PlanChoices(
        strategy="whole_experiment", trust_name=False, fresh_budget=True, max_attempts=4
    )


def test_each_choice_of_a_recipe_reaches_the_plan():
    changed = read(EVERYTHING).apply_to(PlanChoices())
    names = set(EVERYTHING) & set(PlanChoices.__dataclass_fields__)
    assert len(names) == 8
    assert {name: getattr(changed, name) for name in names} == {n: EVERYTHING[n] for n in names}


def test_mappings_are_joined_and_other_arguments_replaced():
    own = {"trainable": "x", "python": "p", "imports": ("i",), "env": {"A": "0", "B": "2"}}
    assert recipe(env={"A": "1"}, imports=["j"]).over(own) == {
        "trainable": "team_a.train:train",
        "python": "p",
        "imports": ("j",),
        "env": {"A": "1", "B": "2"},
    }
    assert recipe(env={"A": "1"}).over({"env": None}) == {"env": {"A": "1"}}
    assert own["env"] == {"A": "0", "B": "2"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"trainable": "team_a.train:Train"},
        {"trainable": "registered", "imports": ["team_a.register"]},
        {"param_space": "team_a.x:space", "search_alg": "team_a.x:searcher"},
        {"resume_errored": True, "strategy": "per_trial", "trust_name": True},
    ],
)
def test_what_a_list_of_modules_allows(fields):
    recipe(**fields).check_allowed(["team_a.*", "other"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trainable": "os:system"}, "the module os, which is not one of those"),
        ({"trainable": "team_a:train"}, "the module team_a, which"),
        ({"trainable": "Team_a.x:train"}, "the module Team_a.x, which"),
        ({"trainable": "team_a.x:os.system"}, "its trainable does not name an attribute"),
        ({"trainable": "team_a.x:"}, "its trainable does not name an attribute"),
        ({"trainable": "team_a.x:a:b"}, "its trainable does not name an attribute"),
        ({"trainable": "team_a.x: train"}, "its trainable does not name an attribute"),
        ({"param_space": "os:environ"}, "the module os, which"),
        ({"param_space": "team_a.x:a.b"}, "its param_space does not name an attribute"),
        ({"search_alg": "subprocess:run"}, "the module subprocess, which"),
        ({"trainable": "registered", "imports": ["evil"]}, "the module evil, which"),
        ({"trainable": ":train"}, "the module , which"),
        ({"python": "/bin/sh"}, "it has python, which recipes=True alone allows"),
        ({"image": "evil", "env": {}}, "it has image and env, which"),
        ({"env": {"PYTHONPATH": "/tmp"}}, "it has env, which"),
        ({"runtime_env": {}}, "it has runtime_env, which"),
    ],
)
def test_what_a_list_of_modules_does_not_allow(fields, words):
    with pytest.raises(InvalidInputError, match=words):
        recipe(**fields).check_allowed(["team_a.*", "other"])
    recipe(**fields).check_allowed([ALL_MODULES])


@pytest.mark.parametrize(
    "runtime_env",
    [
        {"working_dir": "s3://b/code.zip"},
        {"working_dir": "https://x/code.zip", "py_modules": ["gcs://_ray_pkg_1.zip"]},
        {"pip": ["lightgbm"], "env_vars": {"A": "1"}},
        {"working_dir": None, "py_modules": None, "excludes": None},
    ],
)
def test_a_runtime_env_may_name_urls(runtime_env):
    recipe(runtime_env=runtime_env).check_allowed([ALL_MODULES])


PLACES = [
    *(
        "~/x",
        "~root/x",
        "file:///etc",
        "FILE://etc",
        "local:///etc",
        "/etc",
        "code",
        "./code",
        "../x",
    ),
    *("x.zip", "~/x.zip", "", " ", "/etc/x://y", "~x://y", {"a": "/etc"}, ["/etc"], 5, True),
    *(["s3://b/x.zip"], ["FILE:///x"], {"s3://b/x.zip": 1}),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("modules", [["team_a.*"], [ALL_MODULES]], ids=str)
def test_a_runtime_env_in_storage_names_no_file_of_the_worker(place, modules):
    for runtime_env in (
        {"working_dir": place},
        {"py_modules": ["s3://b/x.zip", place]},
        {"py_modules": place} if isinstance(place, str) and place else {"working_dir": place},
    ):
        with pytest.raises(InvalidInputError, match="a place on the machine that reads the recipe"):
            recipe(runtime_env=runtime_env).check_allowed(modules)


def test_a_recipe_in_storage_does_not_bring_back_what_is_left_out_of_a_package():
    with pytest.raises(InvalidInputError, match="excludes"):
        recipe(runtime_env={"excludes": ["!.env"]}).check_allowed([ALL_MODULES])


def test_the_published_schema_is_that_of_the_code():
    again = json.dumps(describe_schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA.read_text() == again, "write describe_schema() to recipe.schema.json"


def test_the_schema_describes_each_field():
    schema = describe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all(field.get("description") for field in properties(schema).values())
    assert properties(schema).keys() == EVERYTHING.keys()


def properties(schema):
    return schema["$defs"]["Recipe"]["properties"]


VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))

# numbers that JSON Schema takes for whole ones, and characters that it cannot exclude, are left out
TEXTS = st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | TEXTS | st.sampled_from([*EVERYTHING.values()]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={name: st.one_of(st.just(value), VALUES) for name, value in EVERYTHING.items()},
)


@given(DOCUMENTS | VALUES | st.dictionaries(TEXTS, VALUES, max_size=2).map(EVERYTHING.__or__))
def test_the_schema_and_the_code_accept_the_same_documents(document):
    try:
        read(document)
    except (ValueError, InvalidInputError):
        accepted = False
    else:
        accepted = True
    assert VALIDATOR.is_valid(document) == accepted, document


def test_both_accept_some_and_refuse_some():
    assert VALIDATOR.is_valid(EVERYTHING)
    assert not VALIDATOR.is_valid({**EVERYTHING, "python": " "})


@given(st.sets(st.sampled_from(sorted(EVERYTHING.keys() - {"schema"}))))
def test_a_recipe_survives_its_file(names):
    document = {name: EVERYTHING[name] for name in names | {"trainable"}}
    kept = read(document)
    assert Recipe.from_json(kept.to_json()) == kept
    assert json.loads(kept.to_json()) == {"schema": 1, **document}


def test_reading_a_recipe_imports_nothing_that_it_names(tmp_path):
    """In a process of its own, where the module would leave a mark."""
    (tmp_path / "marked.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    code = (
        "import sys\n"
        "from airflow_tune_restore.restore.recipes import read_recipe\n"
        "from airflow_tune_restore.storage.memory import MemoryStore\n"
        "store = MemoryStore()\n"
        'store.put(\'.tune_restore/recipe.json\', b\'{"trainable": "marked:train",'
        ' "imports": ["marked"]}\')\n'
        "print(read_recipe(store).trainable, 'marked' in sys.modules, 'ray' in sys.modules)\n"
        "import marked\n"
    )
    places = f"{tmp_path}:{airflow_tune_restore.__path__[0].rpartition('/')[0]}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": places}
    )
    assert done.stdout == "marked:train False False\n", done.stderr
    assert (tmp_path / "mark").exists()  # so the module would have been found


def test_a_status_that_is_not_named_is_left_to_the_dag():
    own = Recipe(trainable="m:t", resume_config=ResumeConfig(finished="resume"))
    dag = PlanChoices(flags=ResumeFlags(errored=RESTART, unfinished=SKIP))
    assert own.apply_to(dag).flags == ResumeFlags(finished=RESUME, errored=RESTART, unfinished=SKIP)
