"""Regular expressions on errors: as with `re.search`, and in bounded time."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.restore import error_pattern

ENDLESS = [  # `re` would take longer than the world lasts for these
    "(a+)+b",
    "^(a|aa)+$b",
    "(.*)*(.*)*(.*)*x",
    "((((a*)*)*)*)*b",
    "(((a?){99}){99}){99}b",
    "(a?){1000000000}b",
    "a{1000000000}",
    "((((((((((.+)+)+)+)+)+)+)+)+)+)x",
]

SINGLE = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "^", "$", r"\b", r"\B", r"\w", r"\s", ""])
REPEATS = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0,2}", "{2,}"]
PATTERNS = st.recursive(
    SINGLE,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda ways: f"({ways[0]}|{ways[1]})"),
        st.tuples(inner, st.sampled_from(REPEATS)).map(lambda part: f"(?:{part[0]}){part[1]}"),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.text("ab \n", max_size=6))
def test_it_finds_what_python_finds(pattern, text):
    assert error_pattern.search(pattern, text) is bool(re.search(pattern, text))


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        ("CUDA.*memory", "OutOfMemoryError: CUDA out of memory", True),
        ("^ValueError", "x ValueError", False),
        ("(?i)cuda", "CUDA", True),
        ("(?x) nan | inf", "loss is inf", True),
        (r"loss=\d+", "loss=12", True),
        (r"\bNaN\b", "it is NaN.", True),
        ("(?P<kind>a|b)c", "xbc", True),
    ],
)
def test_patterns_as_people_write_them(pattern, text, is_found):
    assert error_pattern.search(pattern, text) is is_found


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_of_many_ways_ends(pattern):
    assert not error_pattern.search(pattern, "a" * 400)


@pytest.mark.parametrize(
    "pattern",
    [
        "(", "[", "a**", "(?<x", r"\q", "a{99999999999}", "a" * 301, "((?i)a)",
        "(?=a)", "(?!a)", "(?<=a)b", r"(a)\1", "(?>a)", "a*+", "(?i:a)", "(a)?(?(1)b|c)",
    ],
)  # fmt: skip
def test_what_it_cannot_match_is_refused(pattern):
    with pytest.raises(InvalidInputError, match="cannot be used"):
        error_pattern.check(pattern)


@given(st.text(max_size=40))
def test_no_pattern_raises_anything_else(pattern):
    try:
        error_pattern.search(pattern, "ValueError: no")
    except InvalidInputError:
        return
