"""Odd but genuine: state files and result rows as trainables, searchers and creators fill them.

Ray's own `ExperimentAnalysis` is the judge: nothing that it reads may be refused, no trial of it lost,
and no trial planned for otherwise than without the oddity.
"""

import json
import math
import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow_tune_restore.cli import output
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.local import LocalStore
from campaigns.hostile_targets import output_of
from tests.support import GOLDEN
from tests.support.records import plan_night

EXPERIMENTS = (GOLDEN / "ray-2.60.0" / "killed", *sorted((GOLDEN / "failed").iterdir()))
ALL = ResumeFlags.from_flags(resume_errored=True)

NUMBERS = (
    0, -1, 1.0, 2.5, -0.5, 1e300, 10**30, 10**400, math.nan, math.inf, -math.inf, True, False, None,
)  # fmt: skip
TEXTS = (
    "", "3", "nan", "lr=0.1", "line\nbreak", "tab\t", "back\\slash", "größe", "\U0001fae8", "日本",
    "a/b", "{'lr': 0.1}", "[1, 2]", "x" * 300, "You are a careful assistant. " * 100, "\u202eright",
    "\x1b[31mred", "$(id)", "{{ 7 }}", "-rf", "..",
)  # fmt: skip
NAMES = (
    "lr=0.1\\fold=2", "line\nbreak", "tab\t", "größe", "\U0001fae8", "日本", "a b", "(1)", "[x]", "{x}",
    "a,b=c", "x" * 255, "-rf", "~", "%2e%2e", "$(id)", "{{ 7 }}", "trial.json", "...", "a..b",
    "\u202eright", "\x1b[31mred",
)  # fmt: skip
"""Names of directories that a `trial_dirname_creator` may make, of this Ray or an older one."""

TRAINABLES = ("train" * 500, "größe", "my train", "line\nbreak", "a:b")

METRICS = ("training_iteration", "time_this_iter_s", "time_total_s", "done", "timestamp", "loss", "score",
           "timesteps_total", "experiment_tag", "date", "hostname", "pid", "config")  # fmt: skip


def _any_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 4:
        return {_key(rng): _any_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 3, 30)))}
    if kind == 5:
        return [_any_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 3, 30)))]
    return rng.choice(NUMBERS if kind < 2 else TEXTS)


def _key(rng: random.Random) -> str:
    return rng.choice((*METRICS, *TEXTS[1:10], f"p{rng.randrange(1000)}"))


def _add_metrics(rng: random.Random, row: dict[str, Any]) -> None:
    for _ in range(rng.choice((1, 2, 5))):
        row[rng.choice(METRICS)] = _any_value(rng)


def _odd_tag(rng: random.Random, trial: dict[str, Any], run: dict[str, Any]) -> None:
    tag = rng.choice((None, *TEXTS, "3_" + ",".join(f"p{n}=v{n}" for n in range(1000))))
    trial["experiment_tag"] = tag
    if run["last_result"]:
        run["last_result"]["experiment_tag"] = tag


def _odd_config(rng: random.Random, trial: dict[str, Any], _run: dict[str, Any]) -> None:
    for _ in range(rng.choice((1, 5, 300))):
        trial["config"][_key(rng)] = trial["evaluated_params"][_key(rng)] = _any_value(rng)


def _odd_failures(rng: random.Random, trial: dict[str, Any], run: dict[str, Any]) -> None:
    trial["max_failures"] = rng.choice((math.inf, -1, 3, 1.5, None, "3"))
    run["num_failures"] = rng.choice((0, 1.0, 10**6, None))


def _odd_criterion(rng: random.Random, trial: dict[str, Any], _run: dict[str, Any]) -> None:
    trial["stopping_criterion"] = rng.choice(
        (
            {_key(rng): _any_value(rng)},
            {"a/b": 1},
            {"training_iteration": rng.choice(NUMBERS)},
            None,
        )
    )


def _odd_result(rng: random.Random, _trial: dict[str, Any], run: dict[str, Any]) -> None:
    if rng.random() < 0.1:
        run["last_result"] = rng.choice(({}, None))
    else:
        run["last_result"] = run["last_result"] or {}
        _add_metrics(rng, run["last_result"])


def _odd_times(rng: random.Random, _trial: dict[str, Any], run: dict[str, Any]) -> None:
    run[rng.choice(("start_time", "last_result_time"))] = rng.choice(NUMBERS)


def _odd_analysis(rng: random.Random, _trial: dict[str, Any], run: dict[str, Any]) -> None:
    name = rng.choice(("metric_analysis", "metric_n_steps", "_n_steps", "error_filename"))
    run[name] = rng.choice((_any_value(rng), {}, None))


def _later_ray(rng: random.Random, trial: dict[str, Any], run: dict[str, Any]) -> None:
    rng.choice((trial, run))["of_a_later_ray"] = _any_value(rng)


_ODDITIES: tuple[Callable[[random.Random, dict[str, Any], dict[str, Any]], None], ...] = (
    _odd_tag, _odd_config, _odd_failures, _odd_criterion, _odd_result, _odd_result, _odd_times,
    _odd_analysis, _later_ray,
)  # fmt: skip


def make_odd(rng: random.Random, scratch: Path) -> tuple[Path, Path]:
    """Return a genuine experiment, and a copy of it that is odd."""
    genuine = rng.choice(EXPERIMENTS)
    odd = scratch / "odd"
    shutil.rmtree(odd, ignore_errors=True)
    shutil.copytree(genuine, odd)
    newest = max(odd.glob(f"{layout.STATE_PREFIX}*"))
    state = json.loads(newest.read_text())
    trainable = rng.choice((None, None, None, *TRAINABLES))
    for number, (trial_json, run_json) in enumerate(state["trial_data"]):
        trial, run = json.loads(trial_json), json.loads(run_json)
        trial["trainable_name"] = trainable or trial["trainable_name"]
        for _ in range(rng.choice((0, 1, 1, 3))):
            rng.choice(_ODDITIES)(rng, trial, run)
        if rng.random() < 0.3:
            _rename(rng, odd, trial)
        if rng.random() < 0.3:
            _add_rows(rng, odd, trial)
        indent = rng.choice((2, 2, 2, None))
        state["trial_data"][number] = [json.dumps(d, indent=indent) for d in (trial, run)]
    if rng.random() < 0.3:
        document = state[rng.choice(("runner_data", "stats"))]
        document[rng.choice(("_metric", "_checkpoint_period", "new", *document))] = _any_value(rng)
    newest.write_text(json.dumps(state, indent=rng.choice((None, None, 2))))
    return genuine, odd


def _rename(rng: random.Random, experiment: Path, trial: dict[str, Any]) -> None:
    """Give a trial's directory another name, on disk and in its row."""
    old, new = trial["relative_logdir"], rng.choice(NAMES)
    if old and (experiment / old).is_dir() and not (experiment / new).exists():
        (experiment / old).rename(experiment / new)
        trial["relative_logdir"] = new


def _add_rows(rng: random.Random, experiment: Path, trial: dict[str, Any]) -> None:
    """Add odd metrics to the rows of a trial."""
    path = experiment / (trial["relative_logdir"] or "-") / layout.RESULT_FILE
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            _add_metrics(rng, row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check(genuine: Path, odd: Path) -> bool:
    """Compare what is made of an odd experiment with what is made of the genuine one.

    Returns:
        False if Ray cannot read it.
    """
    rays = _read_by_ray(odd)
    if rays is None:
        return False
    experiment = read_experiment(LocalStore(odd))
    ours = [(t.trial_id, t.status.value.replace("RUNNING", "PENDING")) for t in experiment.trials]
    assert ours == rays
    assert not [trial for trial in experiment.trials if trial.unusable]
    assert _actions(_plan(odd)) == _actions(_plan(genuine))
    (report,) = scan(LocalStore(odd), stale_after=timedelta(0), use_index=False)
    (usual,) = scan(LocalStore(genuine), stale_after=timedelta(0), use_index=False)
    assert report.health == usual.health, report.reason
    for as_json in (True, False):
        output_of(lambda: output.print_plan(_plan(odd), as_json=as_json))  # noqa: B023
        output_of(lambda: output.print_reports([(report, [])], prefix="x", as_json=as_json))  # noqa: B023
    return True


def _read_by_ray(experiment: Path) -> list[tuple[str, str]] | None:
    from ray.tune import ExperimentAnalysis

    try:
        analysis = ExperimentAnalysis(experiment.as_posix())
    except Exception:  # noqa: BLE001  whatever it is, Ray does not read this
        return None
    return [(trial.trial_id, trial.status) for trial in analysis.trials]


def _plan(experiment: Path) -> RestorePlan:
    store = LocalStore(experiment)
    made = plan_night(store, flags=ALL)
    assert RestorePlan.from_json(made.to_json()) == made
    return made


def _actions(plan: RestorePlan) -> dict[str, tuple[str, str | None]]:
    return {trial.trial_id: (trial.action.value, trial.checkpoint) for trial in plan.trials}
