"""The report as a browser opens it from a disk: it draws all, as text, and asks for nothing."""

from datetime import UTC, datetime

import pytest

from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.views.report import build_report
from tests.support.experiments.restored import ENDING, MARKUP, RESUMED, make_restored


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    experiment = make_restored(tmp_path_factory.mktemp("restored"))
    now = datetime(2026, 12, 1, 4, 0, tzinfo=UTC)
    path = tmp_path_factory.mktemp("report") / "report.html"
    store = open_store(str(experiment))
    path.write_text(build_report(store, address=str(experiment), written_at=now))
    return path.as_uri()


@pytest.fixture
def page(open_page, report):
    return open_page(report, only=report)


def test_the_trials_are_drawn_and_hostile_names_are_text(page):
    assert page.locator("h1").inner_text() == MARKUP
    rows = page.locator("#trials tbody tr")
    assert rows.count() == 5
    assert MARKUP in page.locator("#trials").inner_text()
    assert page.locator("img").count() == 0
    assert page.locator("script:not([id])").count() == page.evaluate("document.scripts.length") - 1


def test_a_trial_shows_its_error_as_text(page):
    page.locator(f'#trials [data-row="{RESUMED}"]').focus()
    page.keyboard.press("Enter")
    page.locator(".detail .error").wait_for()
    assert ENDING in page.locator(".detail .error").inner_text()


def test_the_curve_of_the_resumed_trial_has_two_parts_and_a_seam(page):
    page.locator("#tab-curves").click()
    page.locator("#chart canvas").wait_for()
    assert page.locator("#chart").get_attribute("data-seams") == "1"
    drawn = page.locator(".legend .chip")
    with_points = [name for name in drawn.all_inner_texts() if RESUMED in name]
    assert len(with_points) == 1
    assert int(page.locator("#chart").get_attribute("data-lines")) == drawn.count() + 1
    assert "from iteration 2" in page.locator(f'#curve-values [data-row="{RESUMED}"]').inner_text()


def test_the_values_of_a_point_are_shown_beside_it(page):
    page.locator("#tab-curves").click()
    box = page.locator("#chart .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 40)
    page.locator(".tip").wait_for()
    assert RESUMED in page.locator(".tip").inner_text()
    assert "score: 18" in page.locator(".tip").inner_text()


def test_arrow_keys_go_through_the_tabs(page):
    page.locator("#tab-trials").focus()
    for key in ("curves", "plan", "restores", "evidence", "trials"):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{key}"
        assert page.locator(f"#tab-{key}").get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#signs tbody tr").count() > 3


def test_enter_on_a_heading_sorts(page):
    head = page.locator('#trials th[data-column="iteration"]')
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#trials tbody tr").first.get_attribute("data-row") == RESUMED
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"


def test_before_and_after_of_the_restore_is_in_it_and_no_action(page):
    page.locator("#tab-restores").click()
    changed = page.locator(f'#changes [data-row="{RESUMED}"]')
    changed.wait_for()
    assert "2 → 6" in changed.inner_text()
    for name in ('[data-action="undo"]', '[data-action="restore-now"]', '[data-action="release"]'):
        assert page.locator(name).count() == 0
    page.locator("#tab-plan").click()
    page.locator("#plan .numbers").wait_for()
    assert page.locator('[role="switch"]').count() == 0


def test_a_column_that_the_report_holds_can_be_shown(page):
    page.locator("#columns summary").click()
    page.locator('#columns input[value="config/factor"]').check()
    page.locator('#trials th[data-column="config/factor"]').wait_for()


@pytest.mark.parametrize("name", ["constructor", "__proto__", "toString"])
@pytest.mark.parametrize("key", ["trial", "restore_id"])
def test_what_the_report_does_not_hold_is_not_found_by_the_name_of_a_method(page, key, name):
    route = {"trial": "experiment/trial", "restore_id": "experiment/restore"}[key]
    asked = (
        f"source.get('{route}', {{{key}: '{name}'}}).then(() => 'found', (each) => each.message)"
    )
    assert "The report does not hold this" in page.evaluate(asked)
