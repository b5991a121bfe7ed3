"""What Ray itself makes of an experiment: `Tuner.restore(…).fit()`, and the result as comparable values.

    python -m tests.support.ray.tuner_restore restore CASES.json     restores each case, one Ray for all
    python -m tests.support.ray.tuner_restore describe URI…          prints what Ray's tools read

Run in a process of its own: Ray, its environment and its working directory are nobody else's business.
"""

import importlib
import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.experiments.failed import environment


def ask_ray(command: str, *arguments: str, **env: str) -> list[dict[str, Any]]:
    """Run this module in a process of its own, with a Ray of its own; return what it describes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ray.tuner_restore", command, *arguments],
        cwd=ROOT, env=environment(**env), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    marked = [line for line in done.stdout.splitlines() if line.startswith("DESCRIBED ")]
    return json.loads(marked[-1].removeprefix("DESCRIBED ")) if marked else []


VOLATILE = frozenset(
    "timestamp date time_this_iter_s time_total_s pid hostname node_ip time_since_restore "
    "iterations_since_restore pid_of_worker trial_id experiment_tag config".split()
)
"""What differs between two runs of the same thing."""

MARKED_LATER = frozenset({"done"})
"""Ray sets it in the last result in place, after the row's JSON may have been cached (Ray 2.60)."""


def load(name: str) -> Any:
    if ":" not in name:
        importlib.import_module("tests.trainables")
        return name
    module, _, attribute = name.partition(":")
    return operator.attrgetter(attribute)(importlib.import_module(module))


def restore(cases: list[dict[str, Any]]) -> None:
    from airflow_tune_restore.runner.ray_session import start

    start(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 1024**2,
    )
    for case in cases:
        restore_one(case)


def restore_one(case: dict[str, Any]) -> None:
    from ray import tune
    from ray.tune.tune_config import ResumeConfig

    flags = dict(case["flags"])
    if "per_status" in flags:
        kinds = {k: ResumeConfig.ResumeType(v) for k, v in flags.pop("per_status").items()}
        flags["_resume_config"] = ResumeConfig(**kinds)
    if case.get("param_space"):
        flags["param_space"] = load(case["param_space"])()
    if case.get("is_run"):
        _run_again(case, flags)
    else:
        tune.Tuner.restore(case["uri"], load(case["trainable"]), **flags).fit()


def _run_again(case: dict[str, Any], flags: dict[str, Any]) -> None:
    """Make the call of `tune.run` again with a `resume_config`: what stands for `Tuner.restore`.

    But for the trainable, the place and the searcher, Ray takes all it was given at first from the state;
    a config that is given again refreshes references, and here there are none (ray.tune.tune.run, 2.60).
    """
    from ray import tune
    from ray.tune.tune_config import ResumeConfig

    kind = ResumeConfig.ResumeType
    errored = kind.RESTART if flags.get("restart_errored") else kind.SKIP
    # as `Tuner.restore` makes one of its flags (ray.tune.tuner, 2.60)
    of_flags = ResumeConfig(
        unfinished=kind.RESUME if flags.get("resume_unfinished", True) else kind.SKIP,
        errored=kind.RESUME if flags.get("resume_errored") else errored,
    )
    path = Path(case["uri"])
    tune.run(
        load(case["trainable"]), name=path.name, storage_path=str(path.parent), verbose=0,
        resume_config=flags.get("_resume_config", of_flags), raise_on_failed_trial=False,
        search_alg=load(case["search_alg"])() if case.get("search_alg") else None,
    )  # fmt: skip


def describe(uri: str) -> dict[str, Any]:
    """Return the experiment as Ray's ExperimentAnalysis and the files tell it."""
    from ray.tune import ExperimentAnalysis, ResultGrid

    analysis = ExperimentAnalysis(uri)
    grid = ResultGrid(analysis)
    trials = [_describe_trial(trial) for trial in analysis.trials]
    return {
        "trials": sorted(trials, key=lambda trial: trial["config"]),
        "errors": grid.num_errors,
        "terminated": grid.num_terminated,
        "newest": Path(analysis._experiment_json_fs_path).name,
    }


def _describe_trial(trial: Any) -> dict[str, Any]:
    fs, path = trial.storage.storage_filesystem, trial.storage.trial_fs_path
    run = trial.run_metadata
    return {
        "trial_id": trial.trial_id,
        "dir": trial.relative_logdir,
        "config": json.dumps(trial.config, sort_keys=True, default=_named),
        "tag": trial.experiment_tag,
        "status": trial.status,
        "num_failures": run.num_failures,
        "max_failures": trial.max_failures,
        "error_file": run.error_filename,
        "last_result": {
            name: value
            for name, value in stable(run.last_result).items()
            if name not in MARKED_LATER
        },
        "metric": {
            name: run.metric_analysis.get("score", {}).get(name) for name in ("max", "min", "last")
        },
        "checkpoint": Path(trial.checkpoint.path).name if trial.checkpoint else None,
        "kept": [Path(c.checkpoint.path).name for c in _kept(trial)],
        "checkpoints": sorted(name for name in _list(fs, path) if name.startswith("checkpoint_")),
        "rows": [
            stable(json.loads(line)) for line in _read(fs, f"{path}/result.json").splitlines()
        ],
        "csv_rows": len(_read(fs, f"{path}/progress.csv").splitlines()),
        "contents": _contents(fs, path),
        "index": trial.storage.current_checkpoint_index,
    }


def _named(value: Any) -> str:
    """Return what stands for a value that JSON does not have: a function's text holds its address."""
    return getattr(value, "__qualname__", None) or f"{type(value).__name__} {value}"


def stable(result: dict[str, Any]) -> dict[str, Any]:
    """Return what of a result is the same in each run."""
    return {k: v for k, v in result.items() if k not in VOLATILE}


def _kept(trial: Any) -> list[Any]:
    return trial.run_metadata.checkpoint_manager.best_checkpoint_results


def _list(fs: Any, path: str, *, files_only: bool = False) -> list[str]:
    import pyarrow.fs

    found = fs.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    return [Path(entry.path).name for entry in found if entry.is_file or not files_only]


def _contents(fs: Any, path: str) -> dict[str, dict[str, str]]:
    """Return the user's files of each checkpoint, with their text; Ray's own hold times."""
    return {
        name: {
            file: _read(fs, f"{path}/{name}/{file}")
            for file in sorted(_list(fs, f"{path}/{name}", files_only=True))
            if not file.startswith(".")
        }
        for name in sorted(_list(fs, path))
        if name.startswith("checkpoint_")
    }


def _read(fs: Any, path: str) -> str:
    try:
        with fs.open_input_stream(path) as file:
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    if sys.argv[1] == "restore":
        restore(json.loads(Path(sys.argv[2]).read_text()))
    else:
        print("DESCRIBED " + json.dumps([describe(uri) for uri in sys.argv[2:]]))
