"""Labels and paths of the browser -> places, and the way back from an address."""

import pytest
from fastapi import HTTPException

from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.plugin.places import Places, is_path
from airflow_tune_restore.plugin.settings import Settings
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import make_experiment, make_row


def places(**prefixes):
    return Places(Settings(prefixes={name: Address.parse(text) for name, text in prefixes.items()}))


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("s3://c@bucket/sweeps/a", ("s3", "a")),
        ("s3://c@bucket/sweeps/a/b/", ("s3", "a/b")),
        ("s3://c@bucket/sweeps", ("s3", "")),
        ("s3://c@bucket/sweeps/deep/x", ("deep", "x")),
        ("/data/x", ("disk", "x")),
        ("s3://bucket/sweeps/a", None),
        ("s3://other@bucket/sweeps/a", None),
        ("s3://c@bucket/sweepsx/a", None),
        ("s3://c@bucket", None),
        ("s3://c@bucket/sweeps/../a", None),
        ("s3://c@bucket/sweeps/.hidden", None),
        ("s3://c@bucket/sweeps/a?endpoint_override=evil", None),
        ("gs://c@bucket/sweeps/a", None),
    ],
)
def test_an_address_belongs_to_the_longest_prefix_around_it(address, found):
    known = places(s3="s3://c@bucket/sweeps/", deep="s3://c@bucket/sweeps/deep", disk="/data")
    assert known.find(Address.parse(address)) == found


def test_an_experiment_keeps_the_connection_and_the_options_of_its_prefix():
    known = places(s3="s3://c@bucket/sweeps/?region=eu-west-1")
    place = known.place("s3", "a/b c")
    assert str(place.address) == "s3://c@bucket/sweeps/a/b c?region=eu-west-1"
    assert known.find(place.address) == ("s3", "a/b c")


def test_the_prefix_itself_may_be_an_experiment():
    place = places(s3="s3://c@bucket/exp").place("s3", "")
    assert (str(place.address), place.name) == ("s3://c@bucket/exp", "exp")


@pytest.mark.parametrize("path", ["a", "a/b", "why?", "q?r", "größe", "a=b", "100%", "a\\b"])
def test_odd_names_are_paths(path):
    assert is_path(path)


def test_a_directory_that_is_not_an_experiment_is_not_opened(tmp_path):
    (tmp_path / "empty").mkdir()
    known = places(disk=str(tmp_path))
    with pytest.raises(HTTPException, match="is not an experiment") as refused:
        known.open_experiment(known.place("disk", "empty"))
    assert refused.value.status_code == 404


def test_an_experiment_that_was_just_found_is_not_listed_again(tmp_path):
    make_experiment(tmp_path / "exp", [make_row()])
    now = [0.0]
    known = Places(Settings(prefixes={"disk": Address(str(tmp_path))}), monotonic=lambda: now[0])
    place = known.place("disk", "exp")
    assert known.open_experiment(place).uri == open_store(str(tmp_path / "exp")).uri
    for file in (tmp_path / "exp").iterdir():
        file.unlink()
    now[0] = 29
    known.open_experiment(place)
    now[0] = 31
    with pytest.raises(HTTPException):
        known.open_experiment(place)
