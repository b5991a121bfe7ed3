"""Canned answers of the routes of the page, some hostile, and a server of the page with them."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import airflow_tune_restore.views

PAGE = Path(airflow_tune_restore.views.__file__).parent / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:"
)
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}
MARKUP = "<img src=x onerror=alert(1)>"
BIDI = "evil\u202egnp.exe"
LINES = "two\nlines"
EXPERIMENT = "?view=experiment&prefix=team+sweeps&path=2026-01/resnet"
LIVE = "?view=restore&prefix=team+sweeps&path=2026-01/resnet&restore_id=r-20261201"
"""Addresses of the page: one experiment, and one restore."""

PARAMS = ("experiment", "resume_unfinished", "resume_errored", "restart_errored", "stale_after")
"""The Params of a recovery DAG that the page fills in."""

RUN_ID = "scheduled__2026-12-01T02:00:00+00:00"
HOSTILE = (MARKUP, BIDI, LINES, "</script><script>alert(2)</script>", "javascript:alert(3)")

Answer = dict[str, Any] | tuple[int, dict[str, Any]]
Answers = dict[str, Callable[[dict[str, list[str]]], Answer]]
"""By method and route: from the query, or the body of a POST, to the answer."""

HOST = """<!doctype html><html class="dark"><title>Airflow</title>
<iframe width="1200" height="800" src="../tune_restore/?{query}"
 sandbox="allow-scripts allow-same-origin allow-forms allow-downloads"></iframe></html>"""
"""The page of Airflow around ours, with the sandbox of Airflow 3.3."""

HEALTHS = ("errored", "interrupted", "running", "finished", "not_started", "unreadable")
REASONS = {
    "errored": "5 trials are ERROR; nothing was written for 9 h",
    "interrupted": "2 trials are RUNNING, but nothing was written for 3 h",
    "running": "written 20 s ago by a live driver",
    "finished": "all 32 trials are TERMINATED",
    "not_started": "tuner.pkl is there, and no trial was ever begun",
    "unreadable": "experiment_state-2026-01-01_00-00-00.json is cut off after 4,096 bytes",
}


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "prefixes": ["team sweeps"],
        "recovery_dag_id": "restore_experiments",
        "can_act": True,
        "user": "admin",
        "airflow": "",
        "cache_seconds": 30,
        "stale_after": 1800.0,
        "problem": "",
        **changes,
    }


def experiment_rows(count: int = 12) -> list[dict[str, Any]]:
    rows = []
    for at in range(count):
        health = HEALTHS[at % 6]
        name = HOSTILE[at] if at < len(HOSTILE) else f"resnet_lr_sweep_{at:04}"
        trials = {"TERMINATED": 20 + at % 9, "ERROR": 5, "RUNNING": 2}
        rows.append(
            {
                "path": f"2026-01/{name}",
                "name": name,
                "health": health,
                "reason": REASONS[health],
                "trials": {} if health in ("not_started", "unreadable") else trials,
                "samples_left": at % 4,
                "metric": None if health == "unreadable" else "val/accuracy",
                "mode": "max",
                "best": None if health == "unreadable" else 0.9 + math.sin(at) / 20,
                "best_trial": f"{at:05x}_00001",
                "last_write": f"2026-11-30T{at % 24:02}:15:00Z",
                "restore": "nightly_recovery of scheduled__2026-11-30 since 02:00"
                if at == 2
                else None,
                "quarantined": None if health == "unreadable" else at % 3,
                "warnings": ["the ledger cannot be read"] if health == "unreadable" else [],
            }
        )
    return rows


def experiment(count: int = 40) -> dict[str, Any]:
    ids = [f"{at:05x}_{at:05}" for at in range(count)]
    if count > 1:
        ids[1] = MARKUP
    status = [
        "ERROR" if at % 8 == 3 else "PAUSED" if at % 13 == 5 else "TERMINATED"
        for at in range(count)
    ]
    failed = [each == "ERROR" for each in status]
    columns = {
        "status": status,
        "iteration": [20 if each == "TERMINATED" else 7 for each in status],
        "metrics/val/accuracy": [0.5 + (at * 37 % 100) / 250 for at in range(count)],
        "config/lr": [10 ** (-1 - (at * 7 % 40) / 10) for at in range(count)],
        "config/optimizer": [
            LINES if at == 2 else ("adam", "sgd", BIDI)[at % 3] for at in range(count)
        ],
        "cause": ["out of memory" if each else "" for each in failed],
        "error": [
            "OutOfMemoryError: CUDA out of memory, tried 2.4 GiB" if each else None
            for each in failed
        ],
    }
    return {
        "path": "2026-01/resnet",
        "name": f"resnet {MARKUP}",
        "place": "s3://bucket/sweeps/2026-01/resnet",
        "address": "s3://minio@bucket/sweeps/2026-01/resnet",
        "health": "errored",
        "reason": "5 trials are ERROR; nothing was written for 9 h",
        "evidence": [
            {"name": "last write", "found": "9 h ago", "indicates": "no driver is at work"},
            {"name": "statuses", "found": "35 TERMINATED, 5 ERROR", "indicates": "errored"},
        ],
        "warnings": [f"The searcher of {BIDI} cannot be read"],
        "metric": "val/accuracy",
        "mode": "max",
        "scheduler": "AsyncHyperBandScheduler",
        "trainable": "train_resnet",
        "state_file": "experiment_state-2026-11-30_02-00-00.json",
        "last_write": "2026-11-30T18:10:00Z",
        "samples_left": 4,
        "trials": {
            "ids": ids,
            "columns": columns,
            "order": [
                "status",
                "iteration",
                "metrics/val/accuracy",
                "config/lr",
                "config/optimizer",
            ],
        },
        "available": [*columns, "checkpoint", "runtime", "config/momentum", "metrics/loss"],
        "quarantine": {ids[3]: "failed 3 times at iteration 7 with OutOfMemoryError"}
        if count > 3
        else {},
        "ledger_warning": "",
    }


def trial(trial_id: str) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "status": "ERROR",
        "directory": f"train_{trial_id}",
        "iteration": 7,
        "config": {"lr": 0.001, "optimizer": BIDI, MARKUP: True, "layers/0/width": 128},
        "metrics": {"val/accuracy": 0.81, "loss": None, "training_iteration": 7},
        "checkpoint": "checkpoint_000006",
        "resources": {"CPU": 2, "GPU": 1},
        "error_file": "Traceback (most recent call last):\n"
        + "".join(f'  File "train.py", line {at}, in step_{at}\n' for at in range(30))
        + f"RuntimeError: {MARKUP}",
        "failures": [
            {
                "restore_id": "r-20261129",
                "attempt": 1,
                "cause": "out of memory",
                "type": "OutOfMemoryError",
                "message": "CUDA out of memory",
                "place": "train.py:57",
                "iteration": 7,
                "ended_at": "2026-11-29T02:20:00Z",
                "released": False,
            },
        ],
        "quarantined": "failed 3 times at iteration 7 with OutOfMemoryError",
    }


def curves(trial_ids: list[str], metric: str = "val/accuracy") -> dict[str, Any]:
    made = []
    for at, trial_id in enumerate(trial_ids):
        is_resumed = at % 2 == 0
        iterations = [*range(1, 9), *range(6, 31)] if is_resumed else [*range(1, 31)]
        seams = [
            {"iteration": 6, "index": 8, "restore_id": "r-20261130", "at": "2026-11-30T02:10:00Z"}
        ]
        made.append(
            {
                "trial_id": trial_id,
                "iteration": iterations,
                "time": [k * 12.5 for k in iterations],
                "clock": [
                    1796000000 + k * 13 + (30000 if n >= 8 and is_resumed else 0)
                    for n, k in enumerate(iterations)
                ],
                "value": [
                    (0.95 - at * 0.02) * (1 - math.exp(-k / (5 + at)))
                    + math.sin(n * 1.7 + at) / 120
                    for n, k in enumerate(iterations)
                ],
                "seams": seams if is_resumed else [],
                "rows": len(iterations),
                "problem": "",
            }
        )
    return {"metric": metric, "metrics": ["val/accuracy", "loss"], "trials": made}


def plan(query: dict[str, list[str]]) -> dict[str, Any]:
    resumes = query.get("resume_errored") == ["true"]
    trials = [
        {
            "trial_id": f"0000{at}_0000{at}",
            "status": "ERROR",
            "action": "resume",
            "checkpoint": "checkpoint_000006",
            "iteration": 7,
            "reason": "resumes from its newest complete checkpoint",
            "runs_with": None,
            "parameters": {"lr": "0.01"},
            "quarantined": None,
        }
        for at in range(5)
    ]
    return {
        "strategy": "per_trial",
        "strategy_reason": "the trials do not depend on each other",
        "samples_left": 4,
        "state_file": "experiment_state-1.json",
        "warnings": ["The scheduler's earlier results are not remembered"],
        "refusals": [],
        "to_run": 5 if resumes else 0,
        "total": 40,
        "counts": {"to run": 5 if resumes else 0, "in quarantine": 1},
        "kept": ["35 trials are TERMINATED and stay as they are."],
        "trials": trials if resumes else [],
        "hidden": 0,
    }


def restores() -> dict[str, Any]:
    common = {"strategy": "per_trial", "flags": {"resume_errored": True}, "total": 40, "note": ""}
    return {
        "restores": [
            {
                "restore_id": "r-20261201",
                "holder": "nightly_recovery",
                "state": "running",
                "began": "2026-12-01T02:00:00Z",
                "dag_run": {
                    "dag_id": "nightly_recovery",
                    "run_id": RUN_ID,
                },
                "committed": None,
                "state_file": None,
                "to_run": 5,
                **common,
            },
            {
                "restore_id": "r-20261130",
                "holder": f"ana@laptop {MARKUP}",
                "state": "committed",
                "began": "2026-11-30T02:00:00Z",
                "dag_run": None,
                "committed": "2026-11-30T04:12:00Z",
                "state_file": "experiment_state-2026-11-30_02-00-00_r000001.json",
                "to_run": 8,
                **common,
            },
        ],
        "undo": {
            "restore_id": "r-20261130",
            "deletes": ["experiment_state-2026-11-30_02-00-00_r000001.json"],
            "newest": "experiment_state-2026-11-29_22-00-00.json",
            "why_not": "",
        },
    }


def restore(restore_id: str) -> dict[str, Any]:
    change = {
        "action": "resume",
        "status_before": "ERROR",
        "iteration_before": 7,
        "metric_before": 0.71,
        "parameters": {},
        "is_paused": False,
    }
    return {
        "restore_id": restore_id,
        "hidden": 0,
        "headline": "3 resumed trials finished, 1 failed",
        "metric": "val/accuracy",
        "problem": "",
        "changes": [
            {
                "trial_id": "00001_00001",
                "final_trial_id": "00001_00001",
                "status_after": "TERMINATED",
                "iteration_after": 20,
                "metric_after": 0.934,
                "note": "",
                **change,
            },
            {
                "trial_id": "00003_00003",
                "final_trial_id": "aaaa_00003",
                "status_after": "ERROR",
                "iteration_after": 9,
                "metric_after": 0.72,
                "note": f"OutOfMemoryError {MARKUP}",
                **change,
            },
        ],
    }


def progress(*, is_over: bool = False, note: str = "") -> dict[str, Any]:
    states = ("running", "silent", "failed", "finished", "waiting")
    return {
        "restore_id": "r-20261201",
        "is_over": is_over,
        "note": note,
        "at": "2026-12-01T04:20:00Z",
        "whole": None,
        "counts": dict.fromkeys(states, 1),
        "pending": 0,
        "hidden": 0,
        "dag_run": {"dag_id": "nightly_recovery", "run_id": RUN_ID},
        "trials": [
            {
                "trial_id": f"0000{at}_0000{at}",
                "state": state,
                "attempt": 1,
                "attempts": 2,
                "iteration": 8 + at,
                "metric": "val/accuracy",
                "value": 0.8 + at / 50,
                "heard": None if state == "waiting" else 4 + 60 * at,
                "error": f"RuntimeError: {MARKUP}" if state == "failed" else None,
                "cause": "own error" if state == "failed" else None,
                "ray_job": None,
            }
            for at, state in enumerate(states)
        ],
    }


def canned(*, experiments: int = 12, trials: int = 40, **changed: Any) -> Answers:
    """Return the answers of all routes; `changed` are settings."""
    scanned = {
        "place": "s3://bucket/sweeps",
        "address": "s3://minio@bucket/sweeps",
        "scanned_at": "2026-12-01T04:20:00Z",
        "pending": 0,
        "experiments": experiment_rows(experiments),
    }
    about = experiment(trials)
    tasks = [
        {"task_id": "run_trial", "map_index": at, "rendered_map_index": f"0000{at}_0000{at}"}
        for at in range(5)
    ]
    return {
        "GET api/settings": lambda _: settings(**changed),
        "GET api/experiments": lambda query: {"prefix": query["prefix"][0], **scanned},
        "GET api/experiment": lambda _: about,
        "GET api/experiment/column": lambda query: {
            "name": query["name"][0],
            "state_file": about["state_file"],
            "values": list(range(trials)),
        },
        "GET api/experiment/trial": lambda query: trial(query["trial"][0]),
        "GET api/experiment/curves": lambda query: curves(query["trial"], query["metric"][0]),
        "GET api/experiment/plan": plan,
        "GET api/experiment/restores": lambda _: restores(),
        "GET api/experiment/restore": lambda query: restore(query["restore_id"][0]),
        "GET api/experiment/progress": lambda _: progress(),
        "GET api/dag_run": lambda _: {
            "trial": "00001_00001",
            "hidden": 0,
            "restores": [
                {
                    "prefix": "team sweeps",
                    "path": "2026-01/resnet",
                    "name": "resnet",
                    "place": "s3://bucket/sweeps",
                    "restore_id": "r-20261201",
                    "outcome": "restored",
                    "reason": "5 trials to run",
                    "problem": "",
                }
            ],
        },
        "POST api/experiment/release": lambda body: {
            "message": f"Trial {body['trial']} may run again."
        },
        "POST api/experiment/undo": lambda body: {"message": f"Undid {body['restore_id']}."},
        "GET /api/v2/dags/restore_experiments/details": lambda _: {
            "is_paused": False,
            "params": {name: {} for name in PARAMS},
        },
        "POST /api/v2/dags/restore_experiments/dagRuns": lambda _: {
            "dag_run_id": "manual__2026-12-01"
        },
        f"GET /api/v2/dags/nightly_recovery/dagRuns/{RUN_ID}/taskInstances": lambda _: {
            "task_instances": tasks
        },
    }


@contextlib.contextmanager
def serve_page(answers: Answers) -> Iterator[str]:
    """Serve the page under `/tune_restore/`, as Airflow does, and yield its address."""
    from urllib.parse import unquote

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            below = unquote(address.path).removeprefix("/tune_restore/")
            if below.startswith(("api/", "/api/")):
                self._answer(f"GET {below}", parse_qs(address.query, keep_blank_values=True))
            elif below == "/host":
                body = HOST.format(query=address.query.replace("&", "&amp;")).encode()
                self._send(200, TYPES[".html"], body, policy="")
            else:
                self._send_file(PAGE / (below.removeprefix("static/") or "index.html"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(f"POST {unquote(self.path).removeprefix('/tune_restore/')}", body)

        def _answer(self, route: str, asked: dict[str, Any]) -> None:
            found = answers.get(route, lambda _: (404, {"detail": f"no {route}"}))(asked)
            status, value = found if isinstance(found, tuple) else (200, found)
            self._send(status, "application/json", json.dumps(value).encode())

        def _send_file(self, path: Path) -> None:
            if path.is_file():
                self._send(200, TYPES[path.suffix], path.read_bytes())
            else:
                self._send(404, "text/plain", b"")

        def _send(self, status: int, kind: str, body: bytes, *, policy: str = CSP) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Security-Policy", policy)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep the tests' output quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/tune_restore/"
        finally:
            server.shutdown()
            thread.join()


def query_of(page: Any) -> dict[str, str]:
    """Return the query in the address of a page."""
    return {
        name: value[0]
        for name, value in parse_qs(urlsplit(page.evaluate("location.href")).query).items()
    }
