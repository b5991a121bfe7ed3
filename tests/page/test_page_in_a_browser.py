"""The page as a browser draws it from canned answers, some of them hostile."""

import pytest

from tests.support.page import (
    BIDI,
    EXPERIMENT,
    HOSTILE,
    LIVE,
    MARKUP,
    curves,
    query_of,
    settings,
)


def names(page):
    return page.locator("#experiments tbody .name a").all_inner_texts()


def test_experiments_are_listed_and_hostile_names_are_text(visit):
    page = visit()
    page.locator("#experiments tbody tr").first.wait_for()
    assert set(HOSTILE) - {BIDI} <= set(names(page))
    assert page.locator("img").count() == 0
    isolation = page.locator("#experiments .name a bdi").first
    assert isolation.evaluate("each => getComputedStyle(each).unicodeBidi") == "isolate"
    assert page.locator("#experiments tbody a[href^='javascript']").count() == 0


def test_filters_are_in_the_address_and_are_read_from_it(visit):
    page = visit()
    page.locator("#experiments tbody tr").first.wait_for()
    page.locator('[data-health="errored"]').click()
    page.locator("#filter-text").fill("resnet")
    assert query_of(page) | {"health": "errored", "text": "resnet"} == query_of(page)
    found = names(page)
    assert found == ["resnet_lr_sweep_0006"]
    page.reload()
    page.locator("#experiments tbody tr").first.wait_for()
    assert names(page) == found
    assert page.locator('[data-health="errored"]').get_attribute("aria-pressed") == "true"


def test_filters_that_hide_everything_can_be_cleared(visit):
    page = visit("?text=nothing+has+this+name")
    page.get_by_role("button", name="Clear the filters").click()
    assert len(names(page)) == 12
    assert "text" not in query_of(page)


def test_enter_opens_an_experiment_and_back_returns_to_the_list(visit):
    page = visit("?health=errored")
    page.locator("#experiments tbody tr").first.focus()
    page.keyboard.press("Enter")
    page.locator("#trials tbody tr").first.wait_for()
    assert query_of(page)["view"] == "experiment"
    page.go_back()
    page.locator("#experiments tbody tr").first.wait_for()
    assert query_of(page)["health"] == "errored"


def test_best_values_that_are_pending_are_asked_for_again(visit, answers):
    scanned = answers["GET api/experiments"]({"prefix": ["team sweeps"]})
    asked = []

    def answer(query):
        asked.append(query)
        return scanned | {"pending": 1 if len(asked) == 1 else 0}

    answers["GET api/experiments"] = answer
    page = visit(clock=True)
    page.locator("#scanned", has_text="still being read").wait_for()
    page.clock.fast_forward(2000)
    page.locator("#scanned", has_not_text="still being read").wait_for()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "Log in to Airflow again"),
        (403, "those who may read the runs of the DAG restore_experiments"),
        (502, "Admin → Connections"),
    ],
)
def test_an_error_is_a_sentence_with_a_next_step(visit, answers, status, said):
    answers["GET api/experiments"] = lambda _: (status, {"detail": f"It is refused {MARKUP}."})
    page = visit()
    page.locator(".failure").wait_for()
    shown = page.locator(".failure").inner_text()
    assert f"It is refused {MARKUP}." in shown
    assert said in shown


def test_without_a_prefix_the_page_says_what_to_configure(visit, answers):
    answers["GET api/settings"] = lambda _: settings(prefixes=[], problem="No prefix is set.")
    page = visit()
    page.locator(".empty").wait_for()
    assert "[tune_restore]" in page.locator(".empty").inner_text()


def test_a_prefix_without_experiments_says_what_makes_one(visit, answers):
    scanned = answers["GET api/experiments"]({"prefix": ["team sweeps"]})
    answers["GET api/experiments"] = lambda _: scanned | {"experiments": []}
    page = visit()
    page.locator(".empty").wait_for()
    assert "tune-restore scan s3://minio@bucket/sweeps" in page.locator(".empty").inner_text()


def test_the_commands_of_a_shell_are_complete(visit, answers):
    answers["GET api/settings"] = lambda _: settings(stale_after=600)
    page = visit(EXPERIMENT)
    page.get_by_text("The same from a shell").click()
    address = "s3://minio@bucket/sweeps/2026-01/resnet"
    flags = "--resume-errored --stale-after 600"
    said = page.locator(".commands").inner_text()
    assert f"tune-restore plan {address} {flags}\n" in said
    assert f"tune-restore restore {address} --trainable package.module:attribute {flags}\n" in said


def test_many_trials_with_one_problem_are_one_line(visit, answers):
    def answer(query):
        found = curves(query["trial"])
        return found | {
            "trials": [
                trial | {"problem": "it has no result.json", "value": [None] * len(trial["value"])}
                for trial in found["trials"]
            ]
        }

    answers["GET api/experiment/curves"] = answer
    page = visit(EXPERIMENT + "&tab=curves&top=20")
    page.locator(
        ".remarks .notice", has_text="and 15 more trials: it has no result.json"
    ).wait_for()
    assert page.locator(".remarks .notice p").count() == 1


def test_an_error_begins_with_its_exception(visit):
    page = visit(EXPERIMENT + "&trial=00003_00003")
    shown = page.locator(".detail details", has_text="Traceback").locator("strong")
    assert shown.inner_text().startswith("RuntimeError: <img")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_that_of_the_browser_when_it_stands_alone(visit, scheme):
    page = visit(color_scheme=scheme)
    page.locator("#experiments").wait_for()
    assert page.evaluate("document.documentElement.classList.contains('dark')") == (
        scheme == "dark"
    )


def test_in_a_frame_it_follows_the_theme_of_airflow_and_leaves_by_its_page(visit):
    host = visit(f"../host{LIVE}", color_scheme="light")
    inside = host.frame_locator("iframe")
    inside.locator("html.dark").wait_for()
    host.evaluate("document.documentElement.className = 'light'")
    inside.locator("html:not(.dark)").wait_for()
    inside.locator('[data-row="00002_00002"]').get_by_role("link", name="Log").click()
    host.wait_for_url("**/dags/nightly_recovery/runs/**/tasks/run_trial/mapped/2")


@pytest.mark.parametrize("query", ["", EXPERIMENT, f"{EXPERIMENT}&tab=curves", LIVE])
def test_nothing_is_wider_than_half_a_screen(visit, query):
    page = visit(query, viewport={"width": 640, "height": 900})
    page.locator("tbody tr").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 640


def test_a_trial_with_the_name_of_a_method_is_not_in_quarantine(visit, answers):
    about = answers["GET api/experiment"]({})
    about["trials"]["ids"][:3] = ["constructor", "__proto__", "toString"]
    page = visit(EXPERIMENT)
    page.locator('#trials [data-row="constructor"]').wait_for()
    assert set(about["quarantine"]).isdisjoint(about["trials"]["ids"][:3])
    for name in about["trials"]["ids"][:3]:
        assert page.locator(f'#trials [data-row="{name}"] .quarantined').count() == 0


ODD_CURVES = {
    "steps that no number can tell apart": {"iteration": [2**53 - 2, 2**53 - 1, 2**53]},
    "times that no date has": {"x": "clock", "clock": [1e300, 1.7e9, -1e17]},
    "a long time": {"x": "clock", "clock": [-8e12, 0, 8.65e12]},
    "an instant": {"x": "time", "time": [1.0, 1.0000000000000002, 1.0000000000000004]},
    "the largest numbers": {"x": "time", "time": [-1e308, 0, 1e308], "value": [1e308, -1e308, 0]},
}


@pytest.mark.parametrize("log", ["", "&log=y"])
@pytest.mark.parametrize("odd", ODD_CURVES.values(), ids=ODD_CURVES)
def test_odd_numbers_neither_hang_nor_break_the_chart(visit, answers, odd, log):
    trial = {"trial_id": "t", "iteration": [1, 2, 3], "time": [1, 2, 3], "clock": [1, 2, 3]}
    trial |= {"value": [1, 2, 3], "seams": [], "rows": 3, "problem": ""}
    made = {"metric": "loss", "metrics": [], "trials": [trial | odd]}
    answers["GET api/experiment/curves"] = lambda _: made
    page = visit(f"{EXPERIMENT}&tab=curves&x={odd.get('x', 'iteration')}{log}")
    page.locator("#chart canvas").wait_for()
    box = page.locator("#chart .u-over").bounding_box()
    for part in (0.01, 0.5, 0.99):
        page.mouse.move(box["x"] + box["width"] * part, box["y"] + box["height"] / 2)
    assert page.locator("#chart canvas").is_visible()


def test_a_link_that_was_cut_off_still_opens(visit):
    page = visit(f"{EXPERIMENT}&columns=status&pick=%25E0%25A4%25A")
    page.locator("#trials tbody tr").first.wait_for()
