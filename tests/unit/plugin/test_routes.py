"""The routes: who may ask, what is refused, and that nothing outside the prefixes is opened."""

import json

import pytest

from airflow_tune_restore.plugin.permissions import CHECKS, may_act, may_read
from airflow_tune_restore.restore.ledger import read_ledger
from airflow_tune_restore.storage.fs import open_store
from tests.support.airflow.page import HOSTILE

EXP = "prefix=sweeps&path=exp"
READ = [
    "/",
    "/static/icon.svg",
    "/api/settings",
    "/api/experiments?prefix=sweeps",
    f"/api/experiment?{EXP}",
    f"/api/experiment/column?{EXP}&name=status",
    f"/api/experiment/trial?{EXP}&trial=a1",
    f"/api/experiment/curves?{EXP}&trial=a1&trial=a2&metric=score",
    f"/api/experiment/plan?{EXP}&resume_errored=true",
    f"/api/experiment/restores?{EXP}",
    f"/api/experiment/restore?{EXP}&restore_id=r1",
    f"/api/experiment/progress?{EXP}&restore_id=r1",
    "/api/dag_run?dag_id=recovery&run_id=manual",
]
"""All that can be read; a test compares it with the routes."""

ACT = {
    "/api/experiment/release": {"prefix": "sweeps", "path": "exp", "trial": "nobody"},
    "/api/experiment/undo": {"prefix": "sweeps", "path": "exp", "restore_id": "nothing"},
}


def routes(app):
    """All routes of an app and of what is mounted in it."""
    for route in app.routes:
        if hasattr(route, "methods"):
            yield route
        else:
            yield from routes(route)


def checks(route):
    return {each.call for each in route.dependant.dependencies} & CHECKS


def test_each_route_declares_who_may_ask(app):
    found = {route.path: checks(route) for route in routes(app)}
    assert [path for path, declared in found.items() if not declared] == []
    assert len(found) == len(READ) + len(ACT)


def test_what_changes_something_is_a_post_and_needs_the_permission_to_act(app):
    acting = {route.path for route in routes(app) if may_act in checks(route)}
    assert acting == set(ACT)
    assert {route.path for route in routes(app) if route.methods != {"GET"}} == set(ACT)


def test_each_route_is_asked_by_these_tests(app):
    asked = {address.partition("?")[0] for address in READ}
    reading = {route.path for route in routes(app) if may_act not in checks(route)}
    assert {path.replace("{name}", "icon.svg") for path in reading} == asked


@pytest.mark.parametrize("address", READ)
def test_a_viewer_may_read(people, restored, address):
    answer = people["viewer"].get(address)
    assert answer.status_code == 200, answer.text
    assert people["anonymous"].get(address).status_code == 401


@pytest.mark.parametrize("address", ACT)
def test_a_user_may_act_and_a_viewer_may_not(people, restored, address):
    """What they ask for does not exist, so those who may get another refusal."""
    found = {who: people[who].post(address, json=ACT[address]).status_code for who in people}
    refused = 404 if "release" in address else 400
    allowed = dict.fromkeys(["user", "op", "admin"], refused)
    assert found == {"anonymous": 401, "viewer": 403, **allowed}


def test_a_refusal_names_the_dag_whose_permission_is_missing(people):
    refused = people["viewer"].post("/api/experiment/undo", json=ACT["/api/experiment/undo"])
    assert "start runs of the DAG recovery" in refused.json()["detail"]


def test_a_released_trial_has_no_failures_that_count(people, sweeps, restored):
    body = {"prefix": "sweeps", "path": "exp", "trial": "a1"}
    answer = people["user"].post("/api/experiment/release", json=body)
    assert answer.status_code == 200, answer.text
    assert "Trial a1 runs again" in answer.json()["message"]
    ledger, _ = read_ledger(open_store(str(sweeps / "exp")))
    assert ledger.trials["a1"].failures == ()


def test_an_undone_commit_is_gone(people, sweeps, restored):
    undo = {"prefix": "sweeps", "path": "exp", "restore_id": restored}
    before = sorted(sweeps.glob("exp/experiment_state-*"))
    answer = people["user"].post("/api/experiment/undo", json=undo)
    assert answer.status_code == 200, answer.text
    assert "is undone" in answer.json()["message"]
    assert sorted(sweeps.glob("exp/experiment_state-*")) == before[:1]


@pytest.mark.parametrize(
    "path",
    [
        *("..", "../outside", "exp/../../outside", "%2e%2e/outside", "..%2Foutside", "exp/..", "."),
        *("/etc", "//exp", "exp/", "exp//", "\\..\\outside", "exp\\..\\..\\outside", "exp%00"),
        *(".tune_restore/exp", ".hidden", "exp/.tune_restore", "nothing", "deep"),
        *("exp?endpoint_override=http://evil", "exp%3Fendpoint_override=x", "exp%0Ax", "%E2%80%AEexp"),
    ],
)  # fmt: skip
def test_a_path_leads_to_an_experiment_below_its_prefix_or_nowhere(people, path):
    for address in ("/api/experiment", "/api/experiment/plan", "/api/experiment/restores"):
        answer = people["admin"].get(f"{address}?prefix=sweeps&path={path}")
        assert answer.status_code == 404, (path, answer.text)
        assert set(answer.json()) == {"detail"}


def test_an_absolute_path_is_not_opened(people, sweeps):
    answer = people["admin"].get(
        "/api/experiment", params={"prefix": "sweeps", "path": str(sweeps / "exp")}
    )
    assert answer.status_code == 404


@pytest.mark.parametrize("prefix", ["", "other", "s3://bucket/x", "/tmp", "../sweeps"])
def test_only_configured_prefixes_are_opened(people, prefix):
    for address in ("/api/experiments", "/api/experiment"):
        answer = people["admin"].get(address, params={"prefix": prefix})
        assert answer.status_code == 404
        assert "is configured" in answer.json()["detail"]


def test_an_experiment_deeper_below_the_prefix_is_found(people):
    answer = people["viewer"].get("/api/experiment?prefix=sweeps&path=deep/other")
    assert answer.json()["path"] == "deep/other"


@pytest.mark.parametrize(
    "name", ["../page.py", "..%2Fpage.py", "%2e%2e/app.py", "app.py", ".", "LICENSE"]
)
def test_only_files_of_the_page_are_sent(people, name):
    answer = people["admin"].get(f"/static/{name}")
    assert answer.status_code == 404


@pytest.mark.parametrize("restore_id", ["..", "../../outside", "a/b", "", "x" * 500, "a\nb"])
def test_a_restore_id_that_is_not_a_name_is_not_looked_for(people, restore_id):
    for address in ("restore", "progress"):
        params = {"prefix": "sweeps", "path": "exp", "restore_id": restore_id}
        assert people["admin"].get(f"/api/experiment/{address}", params=params).status_code == 404


def test_a_body_that_a_form_could_send_is_refused(people):
    body = json.dumps(ACT["/api/experiment/undo"])
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = people["admin"].post(
            "/api/experiment/undo", content=body, headers={"Content-Type": kind}
        )
        assert answer.status_code == 415, kind


@pytest.mark.parametrize(
    "body",
    [
        *({}, [], "x", {"prefix": "sweeps", "path": "exp"}),
        {"prefix": "sweeps", "path": "exp", "trial": 5},
        {"prefix": ["sweeps"], "path": "exp", "trial": "a1"},
        {"prefix": "sweeps", "path": "exp", "trial": "a1", "address": "s3://other/x"},
        {"prefix": "sweeps", "path": "exp", "trial": "x" * 2000},
    ],
)
def test_a_body_must_be_exactly_as_it_is_declared(people, body):
    answer = people["admin"].post("/api/experiment/release", json=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    "address",
    [
        *("/api/experiments", "/api/experiments?prefix=sweeps&fresh=perhaps"),
        f"/api/experiment/plan?{EXP}&resume_errored=maybe",
        f"/api/experiment/plan?{EXP}&stale_after=nan",
        f"/api/experiment/plan?{EXP}&stale_after=-5",
        f"/api/experiment/curves?{EXP}&metric=score",
        f"/api/experiment/curves?{EXP}&metric=score" + "".join(f"&trial=t{n}" for n in range(51)),
        f"/api/experiment/column?{EXP}&name=",
    ],
)
def test_a_parameter_that_is_not_valid_is_refused_with_a_sentence(people, address):
    answer = people["viewer"].get(address)
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.json()["detail"], str)


def test_an_unknown_trial_is_not_found(people):
    assert people["viewer"].get(f"/api/experiment/trial?{EXP}&trial=zz").status_code == 404


def test_hostile_names_arrive_as_text(people):
    listed = people["viewer"].get("/api/experiments?prefix=sweeps")
    assert listed.headers["content-type"] == "application/json"
    assert HOSTILE in [row["name"] for row in listed.json()["experiments"]]
    params = {"prefix": "sweeps", "path": HOSTILE}
    shown = people["viewer"].get("/api/experiment", params=params).json()
    assert (shown["name"], shown["trials"]["ids"]) == (HOSTILE, [HOSTILE])
    assert not any("\n" in name or "\u202e" in name for name in shown["available"])


def test_the_list_holds_visible_experiments_below_the_prefix(people):
    rows = people["viewer"].get("/api/experiments?prefix=sweeps&fresh=true").json()["experiments"]
    assert sorted(row["path"] for row in rows) == [HOSTILE, "deep/other", "exp"]


def test_a_prefix_whose_connection_is_missing_says_so(people):
    for address in ("/api/experiments?prefix=gone", "/api/experiment?prefix=gone&path=x"):
        answer = people["viewer"].get(address)
        assert answer.status_code == 502
        assert "no_such_connection" in answer.json()["detail"]


def test_the_settings_say_what_the_user_may_do(people):
    assert people["viewer"].get("/api/settings").json() == {
        "prefixes": ["sweeps", "gone"],
        "recovery_dag_id": "recovery",
        "can_act": False,
        "user": "viewer",
        "airflow": "",
        "cache_seconds": 30,
        "stale_after": 0,
        "problem": "",
    }
    assert people["user"].get("/api/settings").json()["can_act"] is True


def test_every_answer_has_the_headers_that_confine_the_page(people):
    for who, address in (("viewer", "/"), ("viewer", "/api/settings"), ("anonymous", "/")):
        headers = people[who].get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
    assert people["viewer"].get("/api/settings").headers["cache-control"] == "no-store"


def test_a_file_that_has_not_changed_is_not_sent_again(people):
    first = people["viewer"].get("/static/icon.svg")
    again = people["viewer"].get(
        "/static/icon.svg", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (first.headers["content-type"], again.status_code) == ("image/svg+xml", 304)
    assert again.content == b""


@pytest.mark.parametrize(
    "address", ["/docs", "/redoc", "/openapi.json", "/static/", "/api", "/api/x"]
)
def test_there_is_nothing_else(people, address):
    assert people["anonymous"].get(address).status_code == 404


def test_reading_is_the_check_of_all_that_is_read(app):
    others = [route.path for route in routes(app) if checks(route) not in ({may_read}, {may_act})]
    assert others == ["/api/dag_run"]
