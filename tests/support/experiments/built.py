"""Experiments for tests, made of real rows: a golden experiment's own JSON with fields replaced."""

import json
import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from airflow_tune_restore.experiments.health import ExperimentReport, Health
from airflow_tune_restore.experiments.trial import Trial
from tests.support import GOLDEN

KILLED = GOLDEN / "ray-2.60.0" / "killed"
STATE_NAME = "experiment_state-2026-11-23_10-00-00.json"


@cache
def _golden_state() -> dict[str, Any]:
    return json.loads(next(KILLED.glob("experiment_state-*.json")).read_text())


def make_row(
    trial_id: str = "t0001",
    *,
    status: str = "TERMINATED",
    trial_dir: str | None = None,
    last_result: dict[str, Any] | None = None,
    last_result_time: float = float("-inf"),
    num_failures: int = 0,
    error: bool = False,
    checkpoint: bool = False,
    run: dict[str, Any] | None = None,
    **fields: Any,
) -> list[str]:
    """Return a `[trial_json, metadata_json]` pair; `checkpoint` keeps the golden row's recorded one.

    `run` holds more fields of the metadata, `fields` of the trial.
    """
    source = next(
        (trial, run)
        for trial, run in _golden_state()["trial_data"]
        if ('"role": "fails"' if checkpoint else '"role": "waits"') in trial
    )
    trial, metadata = json.loads(source[0]), json.loads(source[1])
    trial |= {
        "trial_id": trial_id,
        "status": status,
        "relative_logdir": trial_dir or f"dir_{trial_id}",
    }
    trial |= fields
    metadata.update(
        last_result=last_result or {},
        last_result_time=last_result_time,
        num_failures=num_failures,
        error_filename="error.txt" if error else None,
        pickled_error_filename=None,
        **(run or {}),
    )
    return [json.dumps(trial, indent=2), json.dumps(metadata, indent=2)]


def config_of(trial: Trial) -> dict[str, Any]:
    """Return the config in a trial's row; empty if it cannot be read."""
    try:
        config = json.loads(json.loads(bytes(trial.row.trial)))["config"]
    except (ValueError, TypeError, KeyError):
        return {}
    return config if isinstance(config, dict) else {}


def make_state(rows: list[list[str]], *, start_time: float = 1000.0, **runner: Any) -> bytes:
    """Return a state file as Ray would write it."""
    golden = _golden_state()
    return json.dumps(
        {
            "trial_data": rows,
            "runner_data": {**golden["runner_data"], **runner},
            "stats": {"start_time": start_time},
        }
    ).encode()


def make_experiment(
    directory: Path, rows: list[list[str]], *, total_samples: int | None = None,
    live: Sequence[str] = (), **state: Any,
) -> Path:  # fmt: skip
    """Write an experiment directory: golden tuner.pkl and searcher state; the state last, as Ray does.

    With `total_samples`, the searcher has drawn a trial for each row, and was not told that those of
    `live` have ended.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tuner.pkl", next(KILLED.glob("basic-variant-state-*")).name):
        (directory / name).write_bytes((KILLED / name).read_bytes())
    if total_samples is not None:  # as BasicVariantGenerator.save_to_dir pickles its `__dict__`
        searcher = {"_total_samples": total_samples, "_finished": False, "_live_trials": set(live)}
        (directory / name).write_bytes(pickle.dumps(searcher))
    (directory / STATE_NAME).write_bytes(make_state(rows, **state))
    return directory


def lose_searcher(
    directory: Path, *, total_samples: int, tuner: bytes | None = None, saves: bool = True
) -> Path:
    """Make it an experiment of another searcher than Ray's own; `tuner` is what is left of tuner.pkl.

    Without `saves`, the searcher's class has no `save`.
    """
    (directory / "tuner.pkl").unlink()
    if tuner is not None:
        (directory / "tuner.pkl").write_bytes(tuner)
    for state in directory.glob("basic-variant-state-*"):
        state.unlink()
    # as SearchGenerator.save_to_dir pickles it
    state = {"counter": 1, "total_samples": total_samples, "finished": False, "experiment": None}
    name = STATE_NAME.replace("experiment_state", "search_gen_state")
    (directory / name).write_bytes(pickle.dumps(state))
    if saves:
        own = STATE_NAME.replace("experiment_state", "searcher-state").replace("json", "pkl")
        (directory / own).write_bytes(pickle.dumps({}))
    return directory


def make_report(name: str, health: Health = Health.ERRORED, **fields: Any) -> ExperimentReport:
    """Return what a scan of `/sweeps` says of an experiment."""
    return ExperimentReport(
        **{
            "experiment": f"/sweeps/{name}",
            "health": health,
            "reason": "why",
            "trials": {"ERROR": 1},
            "state_file": "experiment_state-x.json",
            "last_write": None,
            "samples_left": 0,
            **fields,
        }
    )
