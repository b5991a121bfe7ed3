"""The section [tune_restore]: what is read of it, and that no mistake in it costs more than itself."""

import json

import pytest

from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.plugin.settings import Settings, base_path, read_settings
from airflow_tune_restore.provider_info import get_provider_info


@pytest.fixture
def configure(monkeypatch):
    def configure(**options):
        for key, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__TUNE_RESTORE__{key.upper()}", value)
        return read_settings()

    return configure


def test_prefixes_are_labels_with_addresses_as_in_dags(configure):
    given = {"team a": "s3://conn@bucket/sweeps/", "local": "/data/sweeps"}
    settings = configure(prefixes=json.dumps(given), recovery_dag_id="night", cache_seconds="5")
    assert settings == Settings(
        prefixes={
            "team a": Address.parse("s3://conn@bucket/sweeps/"),
            "local": Address("/data/sweeps"),
        },
        recovery_dag_id="night",
        cache_seconds=5,
    )


def test_without_prefixes_the_page_says_how_to_set_them(configure):
    settings = configure()
    assert settings.prefixes == {}
    assert "Set prefixes in the section [tune_restore]" in settings.problem


def test_the_defaults_are_those_of_the_metadata(configure):
    options = get_provider_info()["config"]["tune_restore"]["options"]
    defaults = Settings()
    assert {name: option["default"] for name, option in options.items()} == {
        "prefixes": "",
        "recovery_dag_id": defaults.recovery_dag_id,
        "cache_seconds": str(defaults.cache_seconds),
        "stale_after": str(defaults.stale_after),
    }
    example = configure(prefixes=options["prefixes"]["example"])
    assert (list(example.prefixes), example.problem) == (["team sweeps"], "")


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("prefixes", "s3://key:secret@bucket", "is not a JSON object"),
        ("prefixes", '["s3://bucket"]', "is not a JSON object"),
        ("prefixes", "[" * 100_000, "is not a JSON object"),
        ("prefixes", '{"a": 5}', "must be a path or a URL as text"),
        ("prefixes", '{"a": "s3://key:secret@bucket/x"}', "contains a user and a password"),
        ("prefixes", '{"a": "/data", "b": ""}', "must be a path or a URL"),
        ("prefixes", '{"": "/data"}', "is not a label"),
        ("prefixes", '{"a\\nb": "/data"}', "is not a label"),
        ("prefixes", '{" a": "/data"}', "is not a label"),
        ("cache_seconds", "soon", "cache_seconds = soon is not a number of seconds; 30 is used"),
        ("cache_seconds", "-1", "is not a number of seconds"),
        ("stale_after", "9" * 5000, "is not a number of seconds; 1800 is used"),
        ("stale_after", "٣", "is not a number of seconds"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_and_costs_nothing_else(configure, option, value, told):
    good = {"prefixes": '{"good": "/sweeps"}'} if option != "prefixes" else {}
    settings = configure(**{**good, option: value})
    assert told in settings.problem
    assert "secret" not in settings.problem
    assert (settings.cache_seconds, settings.stale_after) == (30, 1800)
    assert list(settings.prefixes) == (["good"] if good else ["a"] if '"b"' in value else [])


def test_a_blank_dag_id_is_the_default(configure):
    assert configure(recovery_dag_id="  ").recovery_dag_id == "nightly_recovery"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://host/af", "/af"),
        ("https://host:8443/a/b/", "/a/b"),
        ("http://host", ""),
        ("http://host/", ""),
        ("", ""),
        ("http://[broken", ""),
    ],
)
def test_the_path_of_airflow_is_that_of_its_base_url(monkeypatch, url, path):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", url)
    assert base_path() == path
