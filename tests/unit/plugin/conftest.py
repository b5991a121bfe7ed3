"""One app for each module of tests, with experiments on a disk."""

import pytest

from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.plugin.settings import Settings
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow import page
from tests.support.airflow.page import HOSTILE
from tests.support.experiments.built import make_experiment, make_row
from tests.support.records import night


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A prefix with an experiment of two errored trials and a finished one, and a hostile one."""
    root = tmp_path_factory.mktemp("page") / "sweeps"
    rows = [
        make_row("a1", status="ERROR", last_result_time=2.0),
        make_row("a2", status="TERMINATED", last_result={"score": 2.0, "training_iteration": 3}),
        make_row("a3", status="ERROR", last_result_time=3.0),
    ]
    make_experiment(root / "exp", rows)
    make_experiment(root / "deep" / "other", rows)
    make_experiment(
        root / HOSTILE, [make_row(HOSTILE, status="ERROR", last_result={"x\n\u202ey": 1})]
    )
    make_experiment(root / ".tune_restore" / "exp", rows)
    make_experiment(root / ".hidden", rows)
    make_experiment(root.parent / "outside", rows)
    return root


@pytest.fixture(scope="module")
def settings(sweeps):
    return Settings(
        prefixes={
            "sweeps": Address(str(sweeps)),
            "gone": Address("s3://bucket/x", "no_such_connection"),
        },
        recovery_dag_id="recovery",
        stale_after=0,
    )


@pytest.fixture(scope="module")
def app(settings):
    from airflow_tune_restore.plugin.app import create_app

    return create_app(settings)


@pytest.fixture(scope="module")
def people(app):
    """A client for each role."""
    with page.auth_manager() as manager:
        yield page.clients(app, manager)


@pytest.fixture(scope="module")
def restored(sweeps):
    """The id of a restore of `exp` that was committed; one of its trials is in quarantine."""
    store = open_store(str(sweeps / "exp"))
    night(store, "r1", trial_id="a1")
    return "r1"
