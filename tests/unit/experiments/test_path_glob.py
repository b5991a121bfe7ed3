"""Which experiments a glob names: it decides whose code an experiment runs with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments import path_glob

PREFIX = "s3://bucket/sweeps"


@pytest.mark.parametrize(
    ("uri", "pattern", "prefix", "is_match"),
    [
        # without a slash: the name
        ("s3://bucket/sweeps/team_a/lr-1", "lr-*", PREFIX, True),
        ("s3://bucket/sweeps/lr-1/exp", "lr-*", PREFIX, False),
        ("s3://elsewhere/lr-1/", "lr-*", PREFIX, True),
        ("s3://bucket/sweeps/lr-1", "LR-*", PREFIX, False),
        # the path from the prefix, from its first name to its last
        ("s3://bucket/sweeps/team_a/x", "team_a/**", PREFIX, True),
        ("s3://bucket/sweeps/team_a/u/x", "team_a/**", PREFIX, True),
        ("s3://bucket/sweeps/team_a/u/x", "team_a/*", PREFIX, False),
        ("s3://bucket/sweeps/team_a/u/x", "team_a/*/x", PREFIX + "/", True),
        ("s3://bucket/sweeps/team_b/team_a/x", "team_a/**", PREFIX, False),
        ("s3://bucket/sweeps/team_ab/x", "team_a/**", PREFIX, False),
        ("s3://bucket/sweeps/team_b/team_a/x", "**/team_a/**", PREFIX, True),
        ("s3://bucket/sweeps/deep/er/x", "**", PREFIX, True),
        ("s3://bucket/sweeps", "**", PREFIX, True),
        # outside of the prefix
        ("s3://bucket/other/team_a/x", "team_a/**", PREFIX, False),
        ("s3://bucket/sweeps-2/team_a/x", "team_a/**", PREFIX, False),
        ("s3://other/sweeps/team_a/x", "team_a/**", PREFIX, False),
        ("gs://bucket/sweeps/team_a/x", "team_a/**", PREFIX, False),
        ("s3://bucket/other/x", "**", PREFIX, False),
        ("s3://bucket/sweeps/team_a/x?region=a", "team_a/**", PREFIX, False),
        ("s3://bucket/sweeps/team_a/x?region=a", "team_a/**", PREFIX + "?region=a", True),
        ("s3://bucket/sweeps/team_a/../team_b/x", "team_a/**", PREFIX, False),
        ("s3://bucket/sweeps/team_a/./x", "team_a/**", PREFIX, False),
        # no prefix: from the bucket
        ("s3://bucket/sweeps/team_a/x", "sweeps/team_a/*", None, True),
        ("s3://bucket/sweeps/team_a/x", "team_a/*", None, False),
        ("s3://bucket/sweeps/team_a/x", "bucket/sweeps/**", None, False),
        # the whole URI
        ("s3://bucket/sweeps/team_a/x", "s3://bucket/sweeps/team_a/**", None, True),
        ("s3://bucket/sweeps/team_a/x", "s3://bucket/sweeps/team_a/**", "s3://bucket/a", True),
        ("s3://bucket/sweeps/team_a/x", "s3://bucket/team_a/**", None, False),
        ("s3://bucket/sweeps/team_a/x", "S3://*/sweeps/**", None, True),
        ("gs://bucket/sweeps/team_a/x", "s3://bucket/**", None, False),
        ("s3://bucket/sweeps/team_a/x?region=a", "s3://bucket/sweeps/**", None, True),
        # local paths
        ("/data/sweeps/team_a/x", "team_a/**", "/data/sweeps/", True),
        ("/data/sweeps/team_a/x", "team_a/**", "file:///data/sweeps", True),
        ("/data/sweeps/team_b/team_a/x", "team_a/**", "/data/sweeps", False),
        ("/data/sweeps/team_a/../team_b/x", "team_a/**", "/data/sweeps", False),
        ("/data/sweeps/team_a/../team_b/x", "team_b/**", "/data/sweeps", True),
        ("/data/sweeps/team_a/x", "data/sweeps/**", None, True),
        ("/data/sweeps/team_a/x", "/data/sweeps/**", "/data/sweeps", True),
        ("/data/sweeps/team_a/x", "/sweeps/**", "/data", False),
        ("/data/sweeps/team_a/x", "file:///data/sweeps/**", None, True),
        ("s3://data/sweeps/x", "/data/sweeps/**", None, False),
        ("/", "*", None, False),
    ],
)
def test_which_experiments_a_glob_names(uri, pattern, prefix, is_match):
    assert path_glob.matches(uri, pattern, prefix) is is_match


def test_a_relative_path_is_that_of_the_place_it_leads_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_glob.matches("sweeps/team_a/x", "team_a/**", f"{tmp_path}/sweeps")
    assert path_glob.matches(f"{tmp_path}/sweeps/team_a/x", "team_a/**", "sweeps")
    assert not path_glob.matches("sweeps/team_a/../team_b/x", "team_a/**", "sweeps")


NAMES = st.lists(st.sampled_from(["team_a", "team_b", "x", "..", ".", "", "*"]), max_size=5)


@given(NAMES)
def test_a_glob_below_a_team_never_names_what_lies_elsewhere(names):
    uri = "/".join([PREFIX, *names])
    if path_glob.matches(uri, "team_a/**", PREFIX):
        assert uri.startswith(f"{PREFIX}/team_a")
        assert ".." not in uri.split("/")


@pytest.mark.parametrize("pattern", ["", " ", "/", "s3://conn@bucket/**"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern):
    with pytest.raises(InvalidInputError, match="only="):
        path_glob.check_pattern("only", pattern)


def test_a_pattern_with_a_connection_is_refused_with_the_one_to_write():
    with pytest.raises(InvalidInputError, match=r"Write s3://bucket/\*\*\."):
        path_glob.check_pattern("only", "s3://conn@bucket/**")
