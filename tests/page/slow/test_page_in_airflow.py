"""The page under `airflow standalone`, in a browser, on the oldest, this and the newest Airflow.

The oldest has a base URL with a path. The prefix on S3 has 300 experiments, one with 5,000 trials and one
with an odd name, and a sweep that really failed: the page has the recovery DAG restore it.
"""

import contextlib
import json
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.fs import open_store
from tests.matrix.environments import NEWEST_AIRFLOW, OLDEST_AIRFLOW, airflow_python
from tests.support import rest
from tests.support.airflow.site import (
    LABEL,
    PREFIX,
    RECOVERY,
    Site,
    password_of,
    site,
    upload_sweep,
)
from tests.support.browser import chromium
from tests.support.experiments.many import HOSTILE, HOSTILE_TEXT, LARGE, fill
from tests.support.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

SWEEP, FAILED_TRIAL = "errored", "a3723_00002"


@dataclass
class Visit:
    """A site, and a browser to look at it."""

    site: Site
    browser: "Browser"

    def enter(self, name: str, **address: str) -> "Page":
        """Return the page alone, at an address, for a user."""
        page = self.site.log_in(self.browser, name)
        page.goto(f"{self.site.base}/tune_restore/?{query(address)}")
        return page

    def ask(self, name: str, route: str, body: Any = None, **parameters: str) -> Any:
        """Call a route of the app as a user."""
        token = self.site.airflow.token_of(name, password_of(name))
        url = f"{self.site.base}/tune_restore/api/{route}?{query(parameters)}"
        return rest.call(url, token, method="POST" if body else "GET", body=body)

    def store(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return the store of the sweep."""
        for name, value in self.site.server.env.items():
            monkeypatch.setenv(name, value)
        return open_store(f"{self.site.server.url}/{PREFIX}/{SWEEP}")


def query(parameters: dict[str, str]) -> str:
    """Return the query of a URL."""
    return urlencode(parameters)


@pytest.fixture(
    scope="module",
    params=["this", OLDEST_AIRFLOW, NEWEST_AIRFLOW],
    ids=lambda name: f"airflow-{name}",
)
def visit(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Visit]:
    is_oldest = request.param == OLDEST_AIRFLOW
    python = sys.executable if request.param == "this" else airflow_python(request.param)
    home = tmp_path_factory.mktemp("page")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(site(home, python=python, path="/af" if is_oldest else ""))
        fill(running.server, PREFIX)
        upload_sweep(running.server, SWEEP, home)
        yield Visit(running, stack.enter_context(chromium()))


def open_list(visit: Visit, name: str) -> tuple["Page", "FrameLocator"]:
    """Return Airflow's page, and the list in its frame, as a user gets there."""
    page = visit.site.log_in(visit.browser, name, viewport={"width": 1280, "height": 800})
    page.get_by_text("Browse", exact=True).first.click()
    page.get_by_text("Tune experiments", exact=True).first.click()
    frame = page.frame_locator("iframe")
    frame.locator("#experiments tbody tr").first.wait_for()
    return page, frame


def test_the_menu_leads_to_all_experiments(visit):
    page, frame = open_list(visit, "reader")
    frame.locator("#scanned", has_text="301 experiments").wait_for()
    frame.locator("#filter-text").fill(LARGE)
    frame.get_by_role("link", name="resnet_5000").click()
    frame.locator("#trials tbody tr").first.wait_for()
    assert "5,000" in frame.locator(".head").inner_text()
    page.reload()  # the address of Airflow's own page holds all of the state
    page.frame_locator("iframe").get_by_role("heading", name="resnet_5000").wait_for()


def test_hostile_names_and_values_are_text(visit):
    page = visit.enter("reader", view="experiment", prefix=LABEL, path=HOSTILE)
    heading = page.get_by_role("heading", level=1)
    heading.wait_for()
    assert HOSTILE in heading.inner_text()
    page.locator("#trials tbody tr", has_text="odd_00000").click()
    shown = page.locator("text=<img src=x").first
    shown.wait_for()
    assert "\u202e" not in page.content()
    assert page.locator("#main img, #main b").count() == 0
    assert "hacked" not in page.title()
    assert "\u202e" in HOSTILE_TEXT


def test_a_viewer_is_refused_every_action(visit):
    place = {"prefix": LABEL, "path": SWEEP}
    body = {"conf": {}, "logical_date": None}
    for route, action in [
        ("experiment/release", {**place, "trial": FAILED_TRIAL}),
        ("experiment/undo", {**place, "restore_id": "any"}),
    ]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            visit.ask("reader", route, action)
        assert refused.value.code == 403
    token = visit.site.airflow.token_of("reader", password_of("reader"))
    url = f"{visit.site.base}/api/v2/dags/{RECOVERY}/dagRuns"
    with pytest.raises(urllib.error.HTTPError) as refused:
        rest.call(url, token, method="POST", body=body)
    assert refused.value.code == 403
    page = visit.enter("reader", view="experiment", **place)
    button = page.locator("[data-action=restore-now]").first
    button.wait_for()
    assert button.get_attribute("aria-disabled") == "true"


def test_a_restore_from_the_page_shows_both_parts_and_the_seam(visit, monkeypatch):
    visit.site.airflow.unpause(RECOVERY)
    page = visit.enter("oncall", view="experiment", prefix=LABEL, path=SWEEP, tab="plan")
    page.locator("#plan tbody tr, table tbody tr", has_text="resumed from").first.wait_for()
    page.locator("[data-action=restore-now]").first.click()
    page.get_by_role("button", name="Start the DAG run").click()
    page.locator("dialog", has_text="Started").wait_for()
    (run,) = visit.site.airflow.runs(RECOVERY)
    assert visit.site.airflow.finish(RECOVERY, run["dag_run_id"]) == "success"
    tab_of_the_run(visit, run["dag_run_id"])

    curves = visit.ask(
        "reader", "experiment/curves", prefix=LABEL, path=SWEEP, metric="score", trial=FAILED_TRIAL
    )
    (curve,) = curves["trials"]
    assert curve["iteration"] == [1, 2, 3, 4, 5, 6]
    (seam,) = curve["seams"]
    assert (seam["iteration"], seam["index"]) == (3, 3)
    page = visit.enter("reader", view="experiment", prefix=LABEL, path=SWEEP, tab="curves")
    page.locator("#chart canvas").wait_for()
    assert page.locator("#chart").get_attribute("data-seams") == "1"
    page.locator("#curve-values tbody tr", has_text="from iteration 3").wait_for()
    page.get_by_role("tab", name="Restores").click()
    page.locator("#changes tbody tr", has_text=FAILED_TRIAL).wait_for()

    undo_what_was_committed(visit, monkeypatch)


def tab_of_the_run(visit: Visit, run_id: str) -> None:
    """Look at the tab on the DAG run: the trial, and the link to its log."""
    page = visit.site.log_in(visit.browser, "reader", viewport={"width": 1280, "height": 800})
    page.goto(f"{visit.site.base}/dags/{RECOVERY}/runs/{run_id}")
    page.get_by_role("link", name="Tune restore").first.click()
    frame = page.frame_locator("iframe")
    row = frame.locator("#progress tbody tr", has_text=FAILED_TRIAL)
    row.get_by_text("finished").wait_for()
    row.get_by_role("link", name="Log").click()
    log = f"/runs/{quote(run_id)}/tasks/restore.trial/mapped/0"
    page.wait_for_url(lambda url: log in url.replace(":", "%3A"))


def undo_what_was_committed(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo by the page, and see the effect in the store."""
    store = visit.store(monkeypatch)

    def committed() -> list[str]:
        return [entry.name for entry in store.list_dir() if layout.is_committed_state(entry.name)]

    assert len(committed()) == 1
    page = visit.enter("oncall", view="experiment", prefix=LABEL, path=SWEEP, tab="restores")
    page.locator("[data-action=undo]").click()
    page.get_by_role("button", name="Undo it").click()
    page.locator("dialog", has_text="undone").wait_for(timeout=PATIENCE_SECONDS * 1000)
    assert committed() == []
    page.reload()
    page.locator("li", has_text="undone").first.wait_for()


def test_a_release_by_the_page_empties_the_quarantine(visit, monkeypatch):
    store = visit.store(monkeypatch)
    failure = {"restore_id": "r1", "attempt": 1, "cause": "trainable", "type": "ValueError"}
    history = {
        "failures": [failure, {**failure, "attempt": 2}],
        "quarantined": "ValueError, 2 times",
    }
    ledger = {"trials": {FAILED_TRIAL: history}, "schema": 1}
    store.put(layout.LEDGER, json.dumps(ledger).encode())
    page = visit.enter("oncall", view="experiment", prefix=LABEL, path=SWEEP, tab="evidence")
    page.locator("[data-action=release]").click()
    page.get_by_role("button", name="Release it").click()
    page.locator("dialog", has_text="runs again").wait_for(timeout=PATIENCE_SECONDS * 1000)
    assert read_ledger(store)[0].trials[FAILED_TRIAL].quarantined == ""


def test_no_request_leaves_for_another_server(visit):
    page = visit.site.log_in(visit.browser, "reader")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(
        f"{visit.site.base}/tune_restore/?view=experiment&prefix={LABEL}&path={LARGE}&tab=curves"
    )
    page.locator("#main .notice, #chart canvas").first.wait_for()
    assert asked
    assert [url for url in asked if not url.startswith((visit.site.base, "data:"))] == []
