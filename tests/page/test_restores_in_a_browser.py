"""Restores in a browser: the plan with its switches, the actions, and a restore while it runs."""

from tests.support.page import (
    EXPERIMENT,
    LIVE,
    MARKUP,
    RUN_ID,
    experiment,
    progress,
    query_of,
    settings,
)


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
