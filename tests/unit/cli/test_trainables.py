"""`--trainable` and `--recipes`: texts and files become one mapping, and nothing is given twice."""

import json
import re

import pytest

from airflow_tune_restore.cli.trainables import NOTHING_GIVEN, parse_trainables
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.restore.recipe import ALL_MODULES, Recipe
from airflow_tune_restore.restore.recipes import Recipes

TOML = """
train = "team_a.training:train"
"/data/team_b/**" = "team_b.training:train"

["*"]
trainable = "team_c.training:Train"
param_space = "team_c.spaces:wide"
imports = ["team_c.registry"]
python = "/opt/c/bin/python"
restart_errored = true
strategy = "whole_experiment"

["*".env]
MODE = "night"

["*".runtime_env]
pip = ["lightgbm"]
"""

RECIPES = Recipes(
    by_name={"train": Recipe(trainable="team_a.training:train")},
    by_path={"/data/team_b/**": Recipe(trainable="team_b.training:train")},
    others=Recipe(
        trainable="team_c.training:Train",
        param_space="team_c.spaces:wide",
        imports=("team_c.registry",),
        python="/opt/c/bin/python",
        restart_errored=True,
        strategy="whole_experiment",
        env={"MODE": "night"},
        runtime_env={"pip": ["lightgbm"]},
    ),
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


def test_one_trainable_is_for_all_experiments():
    recipes = parse_trainables(["m:train"], [])
    assert recipes == Recipes(others=Recipe(trainable="m:train"))
    assert recipes.is_for_all


@pytest.mark.parametrize("glob", ["*", "**"])
def test_a_glob_that_every_experiment_matches_is_for_all_too(glob):
    assert parse_trainables([f"{glob}=m:train"], []) == parse_trainables(["m:train"], [])


def test_a_name_and_a_glob_are_for_some(write):
    recipes = parse_trainables(["a=m:a", "lr=0.1*=m:b", "s3://b/x/**=m:c", "m:d"], ["team.*"])
    assert recipes == Recipes(
        by_name={"a": Recipe(trainable="m:a")},
        by_path={"lr=0.1*": Recipe(trainable="m:b"), "s3://b/x/**": Recipe(trainable="m:c")},
        others=Recipe(trainable="m:d"),
        modules=("team.*",),
    )


def test_a_file_has_what_trainable_of_a_dag_takes(write):
    assert parse_trainables([write("a.toml", TOML)], []) == RECIPES
    as_json = json.dumps(
        {
            "train": "team_a.training:train",
            "/data/team_b/**": {"trainable": "team_b.training:train"},
            "*": {
                "trainable": "team_c.training:Train",
                "param_space": "team_c.spaces:wide",
                "imports": ["team_c.registry"],
                "python": "/opt/c/bin/python",
                "restart_errored": True,
                "strategy": "whole_experiment",
                "env": {"MODE": "night"},
                "runtime_env": {"pip": ["lightgbm"]},
            },
        }
    )
    assert parse_trainables([write("a.json", as_json)], []) == RECIPES


def test_texts_and_files_make_one_mapping(write):
    write("a.toml", 'a = "m:a"')
    write("b.json", '{"b": "m:b"}')
    recipes = parse_trainables(["a.toml", "c=m:c", "b.json", "m:d"], ["*"])
    assert set(recipes.by_name) == {"a", "b", "c"}
    assert recipes.others == Recipe(trainable="m:d")
    assert recipes.modules == (ALL_MODULES,)


@pytest.mark.parametrize(
    ("given", "whom"),
    [
        (["a=m:a", "a=m:b"], '"a"'),
        (["a.toml", "a=m:b"], '"a"'),
        (["x/**=m:a", "x/**=m:a"], '"x/\\*\\*"'),
        (["m:a", "m:b"], "all experiments"),
        (["m:a", "**=m:b"], "all experiments"),
        (["*=m:a", "all.toml"], "all experiments"),
    ],
)
def test_two_trainables_for_the_same_experiments_are_refused(write, given, whom):
    write("a.toml", 'a = "m:a"')
    write("all.toml", '"**" = "m:a"')
    first, second = map(re.escape, given)
    words = f"for {whom}: by --trainable {first} and by --trainable {second}. Keep one"
    with pytest.raises(InvalidInputError, match=words):
        parse_trainables(given, [])


def test_one_file_for_all_twice_is_refused(write):
    write("all.toml", '"*" = "m:a"\n"**" = "m:a"')
    with pytest.raises(InvalidInputError, match="Two trainables are given for all experiments"):
        parse_trainables(["all.toml"], [])


def test_without_both_options_the_sentence_names_both():
    with pytest.raises(InvalidInputError) as error:
        parse_trainables([], [])
    assert str(error.value) == NOTHING_GIVEN
    assert "--trainable" in NOTHING_GIVEN
    assert "--recipes" in NOTHING_GIVEN


def test_patterns_alone_are_enough():
    assert parse_trainables([], ["a.*", "b"]) == Recipes(modules=("a.*", "b"))


@pytest.mark.parametrize("text", ["", " ", "=m:a", "a=", " =m:a", "*= "])
def test_a_text_without_a_name_or_a_trainable_is_refused(text):
    with pytest.raises(InvalidInputError, match=r"neither MODULE:ATTR nor NAME=MODULE:ATTR nor"):
        parse_trainables([text], [])


def test_an_empty_pattern_is_refused():
    with pytest.raises(InvalidInputError, match="--recipes '' is not a pattern"):
        parse_trainables(["m:a"], [" "])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", None, "it cannot be read: No such file"),
        ("a.toml", "a = ", "it is not valid TOML: "),
        ("a.toml", 'a = "m:a"\na = "m:b"', "it is not valid TOML: "),
        ("a.json", "{", "it is not valid JSON: "),
        ("a.json", '{"a": "m:a", "a": "m:b"}', 'it is not valid JSON: the key "a" is in it twice'),
        ("a.json", "[" * 200_000, "it nests too deeply"),
        ("a.json", b"\xff\xfe", "it is not UTF-8 text"),
        ("a.toml", b"\xff\xfe", "it is not UTF-8 text"),
        ("a.json", '"m:a"', "it gives no trainable. Each key is"),
        ("a.json", "{}", "it gives no trainable. Each key is"),
        ("a.toml", "", "it gives no trainable. Each key is"),
        ("a.toml", "a = 1", 'trainable["a"]: a int is neither'),
        (
            "a.toml",
            "[a]\npython = 'x'",
            'trainable["a"]: it names no trainable',
        ),
        ("a.toml", "[a]\ntrainable = 'm:a'\nparamspace = 'x'", 'trainable["a"]: '),
        ("a.toml", "[a]\ntrainable = 2026-01-01", 'trainable["a"]: '),
        ("a.toml", "[a]\ntrainable = 'm:a'\nstrategy = 'sideways'", "sideways"),
        ("a.json", '{"": "m:a"}', "trainable={'': "),
        ("a.json", '{"s3://conn@bucket/**": "m:a"}', "s3://bucket/**"),
    ],
)
def test_a_broken_file_is_a_sentence_with_file_key_and_next_step(write, name, text, words):
    if text is not None:
        write(name, text)
    with pytest.raises(InvalidInputError) as error:
        parse_trainables([name], [])
    assert str(error.value).startswith(f"--trainable {name}: ")
    assert words in str(error.value)
    assert str(error.value).endswith("Correct it and run the command again.")


def test_a_directory_is_not_a_file(write, tmp_path):
    (tmp_path / "d.toml").mkdir()
    with pytest.raises(InvalidInputError, match=r"d\.toml: it cannot be read: Is a directory"):
        parse_trainables(["d.toml"], [])
