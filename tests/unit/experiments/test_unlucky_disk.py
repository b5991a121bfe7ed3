"""Experiments on a disk where links and files stand that nobody expects: what each costs, and whom."""

from datetime import timedelta

import pytest

from airflow_tune_restore.experiments import layout
from airflow_tune_restore.experiments.health import DriverSign, Health
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.storage.local import LocalStore
from tests.support.experiments.built import make_experiment, make_row

AT_ONCE = timedelta(0)


def put_good(prefix, name="good"):
    return make_experiment(prefix / name, [make_row("a", status="ERROR")])


def verdicts(prefix, **options):
    reports = scan(LocalStore(prefix), stale_after=AT_ONCE, **options)
    return {report.experiment.removeprefix(f"{prefix}/"): report.health for report in reports}


def put_unstarted(prefix):
    (prefix / "new").mkdir()
    (prefix / "new" / "tuner.pkl").write_bytes(b"x")
    return prefix / "new"


# --- one experiment that cannot be asked about


@pytest.mark.parametrize("linked", [layout.ROOT, layout.LEASE])
def test_one_that_never_started_and_whose_lease_is_a_link_stops_no_other(tmp_path, linked):
    put_good(tmp_path)
    own = put_unstarted(tmp_path) / linked
    own.parent.mkdir(exist_ok=True)
    own.symlink_to(tmp_path)
    assert verdicts(tmp_path) == {"good": Health.ERRORED, "new": Health.UNREADABLE}


def test_whoever_is_asked_about_a_driver_may_fail(tmp_path):
    put_good(tmp_path)
    put_unstarted(tmp_path)

    def ask(experiment):
        if experiment.endswith("new"):
            raise RuntimeError("a plugin")
        return DriverSign(is_running=False, found="none")

    assert verdicts(tmp_path, ask_driver=ask) == {
        "good": Health.ERRORED,
        "new": Health.UNREADABLE,
    }


def test_a_listing_that_fails_in_a_way_nobody_foresaw_stops_no_other(tmp_path, monkeypatch):
    put_good(tmp_path)
    put_good(tmp_path, "bad")
    list_dir = LocalStore.list_dir

    def fails(self, path=""):
        if self.uri.endswith("bad"):
            raise RuntimeError("a disk")
        return list_dir(self, path)

    monkeypatch.setattr(LocalStore, "list_dir", fails)
    assert verdicts(tmp_path) == {"good": Health.ERRORED, "bad": Health.UNREADABLE}


# --- a prefix that looks like an experiment itself


def test_a_state_of_no_name_of_rays_that_cannot_be_read_hides_nobody_below_it(tmp_path):
    put_good(tmp_path)
    (tmp_path / "experiment_state-x.json").symlink_to("experiment_state-x.json")
    found = verdicts(tmp_path)
    assert found.pop(str(tmp_path)) is Health.UNREADABLE
    assert found == {"good": Health.ERRORED}


def test_nor_does_one_whose_reading_fails_in_a_way_nobody_foresaw(tmp_path, monkeypatch):
    put_good(tmp_path)
    (tmp_path / "experiment_state-x.json").write_bytes(b"x")
    get = LocalStore.get

    def fails(self, key, **limits):
        if key == "experiment_state-x.json":
            raise RuntimeError("a disk")
        return get(self, key, **limits)

    monkeypatch.setattr(LocalStore, "get", fails)
    assert verdicts(tmp_path)["good"] is Health.ERRORED


def test_of_a_prefix_that_is_an_experiment_it_is_told_that_no_other_is_looked_for(tmp_path, caplog):
    prefix = put_good(tmp_path, "prefix")
    assert list(verdicts(prefix)) == [str(prefix)]
    assert "no other" not in caplog.text  # there is no directory below it
    put_good(prefix)
    assert list(verdicts(prefix)) == [str(prefix)]
    assert f"{prefix} is an experiment itself, and no other is looked for below it" in caplog.text
    caplog.clear()
    assert list(verdicts(tmp_path)) == ["prefix"]
    assert "no other" not in caplog.text


# --- links that lead out of the prefix


@pytest.fixture
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture
def listed(monkeypatch):
    """Return what was listed; a scan that never ends fails instead."""
    paths, list_dir = [], LocalStore.list_dir

    def count(self, path=""):
        paths.append(f"{self.uri}/{path}")
        assert len(paths) < 1000
        return list_dir(self, path)

    monkeypatch.setattr(LocalStore, "list_dir", count)
    return paths


def test_links_elsewhere_that_lead_to_each_other_are_not_followed_for_ever(
    tmp_path, elsewhere, listed
):
    (tmp_path / "a").symlink_to(elsewhere)
    for place in ("x", "y", "z"):
        put_good(elsewhere / place)
        for number in range(20):
            (elsewhere / f"to_{place}_{number}").symlink_to(elsewhere / place)
            (elsewhere / place / f"up_{number}").symlink_to(elsewhere)
            (elsewhere / place / f"self_{number}").symlink_to(elsewhere / place)
    found = verdicts(tmp_path)
    assert {f"a/{place}/good" for place in ("x", "y", "z")} <= set(found)
    assert len(listed) < 100
    assert set(found.values()) == {Health.ERRORED}


def test_of_two_links_to_one_place_always_the_same_is_followed(tmp_path, elsewhere, listed):
    put_good(elsewhere, "e")
    for name in ("c", "b", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(elsewhere)
    for _ in range(5):
        assert list(verdicts(tmp_path)) == ["b/link/e"]


def test_an_experiment_behind_two_links_is_found(tmp_path, elsewhere):
    put_good(elsewhere / "far", "e")
    (elsewhere / "near").mkdir()
    (elsewhere / "near" / "exp").symlink_to(elsewhere / "far" / "e")
    (tmp_path / "team").symlink_to(elsewhere / "near")
    put_good(tmp_path)
    assert verdicts(tmp_path) == {"good": Health.ERRORED, "team/exp": Health.ERRORED}
