"""One experiment -> one HTML file that opens offline: the page, with what its routes would answer in it.

A browser runs the scripts of the page in it, and nothing else: the policy in the file names their hashes.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.health import DEFAULT_STALE_AFTER
from airflow_tune_restore.experiments.root import list_root
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.base import ObjectStore
from airflow_tune_restore.storage.in_flight import for_each
from airflow_tune_restore.views.columns import METRICS, shown_name
from airflow_tune_restore.views.curves import MAX_TRIALS, show_curves
from airflow_tune_restore.views.experiment import show_column, show_experiment
from airflow_tune_restore.views.plan import PlanSwitches, view_plan
from airflow_tune_restore.views.restore import view_restore
from airflow_tune_restore.views.restores import view_restores
from airflow_tune_restore.views.seams import Seams
from airflow_tune_restore.views.shown import ShownExperiment, read_shown
from airflow_tune_restore.views.trial import show_trial

PAGE = Path(__file__).parent / "page"

MAX_CHARACTERS = 4_500_000
"""Of the values; with the page itself, a report is smaller than 5 MB."""

MAX_RESTORES = 5
MAX_ROWS = 500
"""Of the plan, and of one restore."""

MAX_DETAILS = 50
MAX_ERROR_CHARACTERS = 4000
"""Of the error text of one trial: the end of it."""

_FOR_DETAILS = 600_000
_FOR_COLUMNS = 1_000_000
"""Characters of all trials in full, and of columns beyond the first ones."""

_TOO_LARGE = "It was left out of the report, which would have been larger than 5 MB."
_STYLE = re.compile(r'<link rel="stylesheet" href="static/([\w.]+)">')
_SCRIPT = re.compile(r'<script src="static/([\w.]+)"></script>')


def build_report(store: ObjectStore, *, address: str, written_at: datetime) -> str:
    """Return the report of the experiment at the root of a store. Writes nothing.

    `address` is what commands call the experiment. What cannot be read, or is too large, costs its own
    part alone, which then says why.

    Raises:
        StateUnreadableError: If this is not an experiment.
        StorageError: If the store does not answer.
    """
    parts = _Parts(store, address)
    parts.collect()
    report = {
        "written_at": written_at.isoformat(),
        "answers": parts.answers,
        "problems": parts.problems,
    }
    return _write_page(report, title=parts.name)


class _Parts:
    """The answers of the page's routes for one experiment, as far as there is room for them."""

    def __init__(self, store: ObjectStore, address: str) -> None:
        self._store = store
        self._address = address
        self._left = MAX_CHARACTERS
        self._resumed: list[str] = []
        self.name = ""
        self.answers: dict[str, Any] = {}
        self.problems: dict[str, str] = {}

    def collect(self) -> None:
        """Ask for all of them, the most important first."""
        root = list_root(self._store)
        shown = read_shown(self._store, root.entries)
        experiment = show_experiment(
            self._store, root, shown, address=printable(self._address, len(self._address))
        )
        self.name = experiment["name"]
        self.answers["settings"] = _settings()
        self._add("experiment", lambda: experiment)
        self._add("experiment/restores", lambda: view_restores(self._store))
        self._add("experiment/restore", self._read_restores)
        self._add("experiment/curves", lambda: self._read_curves(shown, experiment))
        self._add("experiment/plan", self._read_plan)
        self._add("experiment/trial", lambda: self._read_trials(shown, experiment))
        self._add("experiment/column", lambda: self._read_columns(shown, experiment))

    def _add(self, route: str, read: Callable[[], Any]) -> None:
        try:
            value = read()
        except TuneRestoreError as error:
            self.problems[route] = printable(str(error))
            return
        size = len(json.dumps(value))
        if size > self._left:
            self.problems[route] = _TOO_LARGE
            return
        self._left -= size
        self.answers[route] = value

    def _read_restores(self) -> dict[str, Any]:
        """Return the newest restores before and after, by their ids."""
        listed = self.answers.get("experiment/restores", {}).get("restores", [])
        committed = [each["restore_id"] for each in listed if each["state"] == "committed"]
        read = {each: view_restore(self._store, each) for each in committed[:MAX_RESTORES]}
        for view in read.values():
            ran = [change for change in view["changes"] if change["action"] != "keep"]
            self._resumed += [change["final_trial_id"] for change in ran]
            kept = view["changes"] if len(view["changes"]) <= MAX_ROWS else ran[:MAX_ROWS]
            view["hidden"] += len(view["changes"]) - len(kept)
            view["changes"] = kept
        return read

    def _read_curves(self, shown: ShownExperiment, experiment: dict[str, Any]) -> dict[str, Any]:
        metric = shown.metric or _first_metric(shown)
        resumed = [trial_id for trial_id in self._resumed if trial_id in shown.numbers]
        chosen = list(dict.fromkeys([*resumed, *_best_first(shown, experiment)]))[:MAX_TRIALS]
        if not chosen:
            return {"metric": metric, "metrics": [], "trials": []}
        return show_curves(
            self._store,
            shown,
            Seams(),
            metric=metric,
            trial_ids=chosen,
            address=self._address,
        )

    def _read_plan(self) -> dict[str, Any]:
        """Return the plan of a recovery: it resumes errored trials, too."""
        plan = view_plan(self._store, PlanSwitches(resume_errored=True))
        plan["hidden"] += max(0, len(plan["trials"]) - MAX_ROWS)
        plan["trials"] = plan["trials"][:MAX_ROWS]
        return plan

    def _read_trials(self, shown: ShownExperiment, experiment: dict[str, Any]) -> dict[str, Any]:
        """Return trials in full by id: those that failed, then those that were restored."""
        failed = [
            trial.trial_id
            for trial in shown.trials
            if trial.status is TrialStatus.ERROR or trial.trial_id in experiment["quarantine"]
        ]
        resumed = [trial_id for trial_id in self._resumed if trial_id in shown.numbers]
        wanted = list(dict.fromkeys([*failed, *resumed]))[:MAX_DETAILS]
        found: dict[str, Any] = {}
        left = _FOR_DETAILS
        for view in for_each(lambda each: show_trial(self._store, shown, each), wanted):
            view["error_file"] = view["error_file"][-MAX_ERROR_CHARACTERS:]
            left -= len(json.dumps(view))
            if left < 0:
                break
            found[view["trial_id"]] = view
        return found

    def _read_columns(self, shown: ShownExperiment, experiment: dict[str, Any]) -> dict[str, Any]:
        """Return more columns by name, as many as there is room for."""
        found: dict[str, Any] = {}
        left = _FOR_COLUMNS
        for name in experiment["available"]:
            if name in experiment["trials"]["columns"]:
                continue
            column = show_column(self._store, shown, name)
            left -= len(json.dumps(column))
            if left < 0:
                break
            found[name] = column
        return found


def _settings() -> dict[str, Any]:
    return {
        "prefixes": [],
        "recovery_dag_id": "",
        "can_act": False,
        "user": "",
        "airflow": "",
        "cache_seconds": 0,
        "stale_after": DEFAULT_STALE_AFTER.total_seconds(),
        "problem": "",
    }


def _first_metric(shown: ShownExperiment) -> str:
    """Return the first value of the results that is not one of Ray's own; "" if there is none."""
    names = (name for name in shown.columns.names if name.startswith(METRICS))
    return next(names, METRICS).removeprefix(METRICS)


def _best_first(shown: ShownExperiment, experiment: dict[str, Any]) -> list[str]:
    """Return the ids of all trials, the best values of the metric first."""
    ids: list[str] = experiment["trials"]["ids"]
    columns = experiment["trials"]["columns"]
    values = columns.get(f"{METRICS}{shown_name(shown.metric or '')}", [None] * len(ids))
    sign = 1 if shown.mode == "min" else -1

    def key(number: int) -> float:
        value = values[number]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return sign * value if is_number else float("inf")

    return [ids[number] for number in sorted(range(len(ids)), key=key)]


def _write_page(report: dict[str, Any], *, title: str) -> str:
    """Return the page with its styles, scripts and values in it, and a policy for these alone."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def inline(kind: str) -> Callable[[re.Match[str]], str]:
        def element(found: re.Match[str]) -> str:
            text = (PAGE / found[1]).read_text(encoding="utf-8")
            hashes[kind].append(_hash(text))
            return f"<{kind}>{text}</{kind}>"

        return element

    page = (PAGE / "index.html").read_text(encoding="utf-8")
    first = _SCRIPT.search(page)
    at = first.start() if first is not None else len(page)
    head, scripts = page[:at], page[at:]
    head = _STYLE.sub(inline("style"), head)
    scripts = _SCRIPT.sub(inline("script"), scripts)
    head = head.replace("<title>Tune experiments</title>", f"<title>{html.escape(title)}</title>")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    charset = '<meta charset="utf-8">'
    meta = f'{charset}\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    license_text = (PAGE / "LICENSE.uPlot").read_text(encoding="utf-8")
    return (
        head.replace(charset, meta, 1)
        + f"<!-- uPlot:\n{license_text}-->\n"
        + f'<script type="application/json" id="report-data">{_embed(report)}</script>\n'
        + scripts
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _embed(value: Any) -> str:
    """Return a value as ASCII JSON that cannot end the element it stands in, nor begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
