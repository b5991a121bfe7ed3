"""The page as a browser draws it from canned answers, some of them hostile."""

from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.page import (
    BIDI,
    HOSTILE,
    MARKUP,
    RUN_ID,
    canned,
    curves,
    experiment,
    progress,
    serve_page,
    settings,
)

EXPERIMENT = "?view=experiment&prefix=team+sweeps&path=2026-01/resnet"
LIVE = "?view=restore&prefix=team+sweeps&path=2026-01/resnet&restore_id=r-20261201"


@pytest.fixture
def answers():
    return canned()


@pytest.fixture
def visit(open_page, answers):
    """Return a function that opens the page at a query."""
    with serve_page(answers) as url:
        yield lambda query="", **options: open_page(
            url + query, only=url.rsplit("/", 2)[0], **options
        )


def query_of(page):
    return {
        name: value[0]
        for name, value in parse_qs(urlsplit(page.evaluate("location.href")).query).items()
    }


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


def test_switches_of_the_plan_ask_for_it_again(visit):
    page = visit(f"{EXPERIMENT}&tab=plan")
    page.locator("#plan .numbers", has_text="5 of 40 trials to run").wait_for()
    page.locator('[data-flag="resume_errored"]').uncheck(force=True)
    page.locator("#plan .numbers", has_text="0 of 40 trials to run").wait_for()
    assert query_of(page)["resume_errored"] == "false"


def test_restore_now_shows_what_it_sends_and_then_the_run(visit, answers):
    sent = []
    route = "POST /api/v2/dags/restore_experiments/dagRuns"
    answers[route] = lambda body: sent.append(body) or {"dag_run_id": "manual__1"}
    page = visit(f"{EXPERIMENT}&tab=plan")
    page.locator("#plan .numbers").wait_for()
    page.locator('[data-action="restore-now"]').first.click()
    assert "s3://minio@bucket/sweeps/2026-01/resnet" in page.locator("dialog").inner_text()
    assert sent == []
    page.get_by_role("button", name="Start the DAG run").click()
    page.locator("dialog a", has_text="manual__1").wait_for()
    assert sent == [
        {
            "logical_date": None,
            "conf": {
                "experiment": "s3://minio@bucket/sweeps/2026-01/resnet",
                "resume_unfinished": True,
                "resume_errored": True,
                "restart_errored": False,
                "stale_after": 1800.0,
            },
        }
    ]


def test_both_buttons_restore_with_the_switches_of_the_plan(visit):
    page = visit(EXPERIMENT + "&tab=plan&resume_errored=false&stale_after=0")
    page.locator("#plan .numbers").wait_for()
    buttons = page.locator("[data-action=restore-now]").all()
    assert len(buttons) == 2
    for button in buttons:
        button.click()
        said = page.locator("dialog").inner_text()
        assert "resume_errored\nno" in said
        assert "stale_after\n0 s" in said
        page.keyboard.press("Escape")


def test_who_knows_that_the_driver_is_dead_may_restore_what_looks_alive(visit, answers):
    answers["GET api/experiment"] = lambda _: experiment() | {"health": "running"}
    page = visit(EXPERIMENT + "&tab=plan")
    button = page.locator("[data-action=restore-now]").last
    button.wait_for()
    assert "set Stale after in the Plan tab" in button.get_attribute("title")
    page.locator("#stale-after").fill("0")
    page.locator("#stale-after").press("Enter")
    page.locator(".command", has_text="--stale-after 0").wait_for()
    page.locator("[data-action=restore-now]:not([aria-disabled])").first.click()
    assert "stale_after\n0 s" in page.locator("dialog").inner_text()


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


def test_a_restore_that_ended_without_a_commit_says_what_becomes_of_it(visit, answers):
    note = "It was not committed. The next restore commits what its trials have done."
    answers["GET api/experiment/progress"] = lambda _: progress(note=note)
    page = visit("?view=restore&prefix=team+sweeps&path=2026-01%2Fresnet&restore_id=r-20261201")
    page.locator(".live .badge", has_text="not committed").wait_for()
    assert note in page.locator(".live").inner_text()


def test_restore_now_warns_of_a_dag_that_would_do_something_else(visit, answers):
    details = "GET /api/v2/dags/restore_experiments/details"
    answers[details] = lambda _: {"is_paused": True, "params": {"resume_errored": {}}}
    page = visit(EXPERIMENT)
    page.locator('[data-action="restore-now"]').first.click()
    page.locator("dialog .doubts .notice").wait_for()
    text = page.locator("dialog .doubts").inner_text()
    assert "is paused" in text
    assert 'has no Param "experiment"' in text
    assert "no Param for resume_unfinished, restart_errored, stale_after" in text
    assert "Open the DAG" in text
    page.get_by_role("button", name="Start the DAG run").wait_for()


def test_restore_now_cannot_start_a_dag_that_is_not_there(visit, answers):
    del answers["GET /api/v2/dags/restore_experiments/details"]
    page = visit(EXPERIMENT)
    page.locator('[data-action="restore-now"]').first.click()
    page.locator("dialog", has_text="Airflow has no DAG restore_experiments").wait_for()
    assert page.get_by_role("button", name="Start the DAG run").count() == 0


def test_whoever_may_not_act_is_told_why(visit, answers):
    answers["GET api/settings"] = lambda _: settings(can_act=False)
    page = visit(EXPERIMENT)
    act = page.locator('[data-action="restore-now"]')
    act.wait_for()
    assert act.get_attribute("aria-disabled") == "true"
    assert "may not run the DAG restore_experiments" in act.get_attribute("title")
    act.click(force=True)
    assert page.locator("dialog").count() == 0


def test_a_release_is_confirmed_and_the_sentence_of_the_server_is_shown(visit):
    page = visit(f"{EXPERIMENT}&tab=evidence")
    page.locator('[data-action="release"]').click()
    page.get_by_role("button", name="Release it").click()
    said = page.locator("dialog .notice.good")
    said.wait_for()
    assert "may run again" in said.inner_text()


def test_an_undo_that_is_refused_says_why(visit, answers):
    answers["POST api/experiment/undo"] = lambda _: (409, {"detail": "A newer state was written."})
    page = visit(f"{EXPERIMENT}&tab=restores")
    page.locator('[data-action="undo"]').click()
    page.get_by_role("button", name="Undo it").click()
    page.locator("dialog .failure").wait_for()
    assert "A newer state was written." in page.locator("dialog .failure").inner_text()


def test_a_live_restore_links_to_the_logs_of_its_tasks(visit):
    page = visit(LIVE)
    failed = page.locator('#progress [data-row="00002_00002"]')
    failed.wait_for()
    assert MARKUP in failed.inner_text()
    href = failed.get_by_role("link", name="Log").get_attribute("href")
    assert href.endswith("/tasks/run_trial/mapped/2")


def test_logs_are_found_on_every_page_of_tasks_by_the_whole_id_of_the_trial(visit, answers):
    """Airflow gives at most a hundred tasks at a time; the label of one may end like that of another."""
    route = f"GET /api/v2/dags/nightly_recovery/dagRuns/{RUN_ID}/taskInstances"
    labels = [f"resnet 9{at:05}_00002_00002" for at in range(120)]
    labels[110] = "resnet 00002_00002"
    tasks = [
        {"task_id": "run_trial", "map_index": at, "rendered_map_index": label}
        for at, label in enumerate(labels)
    ]

    def answer(query):
        begin = int(query["offset"][0])
        found = tasks[begin : begin + min(100, int(query["limit"][0]))]
        return {"task_instances": found, "total_entries": len(tasks)}

    answers[route] = answer
    page = visit(LIVE)
    link = page.locator('#progress [data-row="00002_00002"]').get_by_role("link", name="Log")
    assert link.get_attribute("href").endswith("/tasks/run_trial/mapped/110")


def test_a_restore_is_asked_for_until_it_is_over(visit, answers):
    asked = []

    def answer(query):
        asked.append(query["restore_id"])
        return progress(is_over=len(asked) == 2)

    answers["GET api/experiment/progress"] = answer
    page = visit(LIVE, clock=True)
    page.locator(".live", has_text="Read again every 5 seconds").wait_for()
    page.clock.fast_forward(5000)
    page.locator(".live", has_text="This restore is over").wait_for()
    page.clock.fast_forward(60_000)
    page.locator("#tab-none").count()  # a round trip through the page
    assert asked == [["r-20261201"]] * 2


def test_a_tab_of_a_task_instance_marks_its_trial(visit):
    page = visit("?view=dag_run&dag_id=nightly&run_id=r&task_id=run_trial&map_index=1")
    page.locator('#progress [data-row="00001_00001"].chosen').wait_for()


def test_a_plus_in_the_id_of_a_run_is_a_plus_also_if_airflow_does_not_encode_it(visit, answers):
    asked = []
    found = answers["GET api/dag_run"]
    answers["GET api/dag_run"] = lambda query: asked.append(query["run_id"]) or found(query)
    page = visit("?view=dag_run&dag_id=nightly&run_id=manual__2026-12-01T04:46:27+00:00")
    page.locator("#progress tbody tr").first.wait_for()
    assert asked == [["manual__2026-12-01T04:46:27+00:00"]]


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
