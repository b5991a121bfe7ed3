"""Which paths below a prefix are looked into."""

from fnmatch import fnmatchcase

import pytest

from airflow_tune_restore.experiments import path_glob
from airflow_tune_restore.experiments.scan_filter import ScanFilter


@pytest.mark.parametrize(
    ("include", "path", "taken"),
    [
        ((), "team/exp", True),
        (("exp",), "team/exp", True),
        (("exp*",), "team/other", False),
        (("team_a",), "team_a/user/exp", True),  # below a directory that matches
        (("team_a/*",), "team_a/exp", True),
        (("team_a/*",), "team_b/exp", False),
        (("team_*/user/exp",), "team_x/user/exp", True),
        (("*/exp",), "a/b/exp", False),  # a star stays within a name
        (("**/exp",), "a/b/exp", True),
        (("**/exp",), "exp", True),
        (("a/**",), "a/b/c", True),
        (("a/**/z",), "a/z", True),
        (("a/**/z",), "a/b/c/z", True),
        (("lr=0.1,*",), "t/lr=0.1, 50%", True),
        (("[ab]x",), "bx", True),
        (("EXP",), "exp", False),
    ],
)
def test_what_is_included(include, path, taken):
    assert ScanFilter(include=include).includes(path) is taken


def test_an_experiment_at_the_prefix_itself_is_always_taken():
    assert ScanFilter(include=("other",)).includes("")


@pytest.mark.parametrize(
    ("selection", "path", "entered"),
    [
        ({}, "a", True),
        ({"exclude": ("a",)}, "a", False),
        ({"exclude": ("a",)}, "b/a", False),
        ({"exclude": ("b/a",)}, "a", True),
        ({"exclude": ("tmp*",)}, "tmp-1", False),
        ({"include": ("team_a/*/x",)}, "team_b", False),
        ({"include": ("team_a/*/x",)}, "team_a", True),
        ({"include": ("team_a/*/x",)}, "team_a/u", True),
        ({"include": ("team_a/*/x",)}, "team_a/u/y", False),
        ({"include": ("team_a/*/x",)}, "team_a/u/x/deep", True),
        ({"include": ("x",)}, "anything", True),
        ({"include": ("**/x",)}, "anything/else", True),
        ({"include": ("x",), "exclude": ("x",)}, "x", False),
    ],
)
def test_what_is_listed(selection, path, entered):
    assert ScanFilter(**selection).descends_into(path) is entered


def test_a_pattern_of_many_stars_is_held_once_against_each_name_of_each_path(monkeypatch):
    """Trying out what each `**` might stand for would take longer than the world lasts."""
    patterns, names = [*["**", "a"] * 40, "z"], ["a"] * 60
    left = iter(range(len(patterns) * len(names) ** 2))

    def compare(name: str, pattern: str) -> bool:
        assert next(left, None) is not None, "a name was held against the same pattern again"
        return fnmatchcase(name, pattern)

    monkeypatch.setattr(path_glob, "fnmatchcase", compare)
    assert not ScanFilter(include=("/".join(patterns),)).includes("/".join(names))
