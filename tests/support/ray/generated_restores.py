"""Generated experiments, restored by `Tuner.restore` on one copy and by us on another.

What is compared: the result table, every row of result.json, the checkpoints with their contents, and
what the experiment state says of each trial. The experiment may die at any step of its driver: then
both start from the storage as it was at that moment. What may differ is listed in `_compare`, each
with its reason; `docs/conformance.md` says the same in words. `CONFORMANCE_RECORD` names a file that
gets one line an example.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.experiment import search_is_exhausted
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.generated_recipes import SEARCHERS, experiments, restores
from tests.support.ray.kept import HostError, Hosts
from tests.support.ray.kept_process import SEARCHER_REFUSED
from tests.support.ray.pair import make_pair
from tests.support.ray.tuner_restore import stable

MODULE = "tests.support.experiments.generated"
ALREADY_RESTARTED = "by its `default_resource_request()` method"
"""Of Ray's error about a trial that it restarted in an earlier restore (see docs/conformance.md)."""

LOST_BY_RAY = (ALREADY_RESTARTED, SEARCHER_REFUSED)


def find_differences(
    hosts: Hosts,
    scratch: Path,
    examples: int,
    *,
    derandomize: bool,
    explicit: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Run those that are given and so many drawn examples, and return those that ended in two ways."""
    found: list[dict[str, Any]] = []
    shapes: set[str] = set()
    count = 0

    def differ(recipe: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
        nonlocal count
        if (shape := _shape(recipe)) in shapes:
            reject()  # Hypothesis varies values of the last example; each costs seconds
        shapes.add(shape)
        count += 1
        entry = {"number": count, "recipe": recipe, "rounds": rounds}
        _record({"begins": entry})
        try:
            entry["result"] = _run(hosts, scratch / f"{count:04}", recipe, rounds)
        except (AssertionError, HostError, TuneRestoreError) as difference:
            entry["difference"] = f"{type(difference).__name__}: {difference}"
            found.append(entry)
        _record(entry)

    for each in explicit:
        differ(**each)
    if examples:
        drawn = given(recipe=experiments(), rounds=st.lists(restores(), min_size=1, max_size=2))
        settings(
            max_examples=examples,
            derandomize=derandomize,
            phases=[
                Phase.generate
            ],  # an example takes seconds: the first is as good as the smallest
            suppress_health_check=list(HealthCheck),
            database=None,
            deadline=None,
        )(drawn(differ))()
    return found


def _shape(recipe: dict[str, Any]) -> str:
    """Return what decides how an experiment runs: the recipe without the values that it only hands on."""
    trials = [{**trial, "reports": list(trial["reports"])} for trial in recipe["trials"]]
    return json.dumps({**recipe, "trials": trials, "config": None})


def _record(entry: dict[str, Any]) -> None:
    if record := os.environ.get("CONFORMANCE_RECORD"):
        with Path(record).open("a") as file:
            file.write(json.dumps(entry, default=str) + "\n")


def _run(hosts: Hosts, scratch: Path, recipe: dict, rounds: list[dict]) -> list[str]:
    """Make one experiment, restore both copies of it in turn, and compare after each round."""
    scratch.mkdir()
    cause = scratch / "cause"
    cause.touch()
    is_run = recipe["is_run"]
    pair = make_pair(
        hosts, scratch, "Run" if is_run else "make_tuner",
        module=MODULE,
        trainable=_asking(recipe, "same"),
        is_run=is_run, search_alg=SEARCHERS.get(recipe["search"]) if is_run else None,
        dies_after=recipe["dies_after"],
        env={
            "TUNE_GLOBAL_CHECKPOINT_S": recipe["period"],
            "TUNE_MAX_PENDING_TRIALS_PG": "1",  # so that samples are left when the driver dies
        },
        recipe={**recipe, "trials": [{**trial, "cause": str(cause)} for trial in recipe["trials"]]},
    )  # fmt: skip
    known = {path.name for path in pair.ours.iterdir()}
    if not any(name.startswith("experiment_state") for name in known):
        # it died before its first snapshot: Ray runs one trial with an empty config, we refuse
        with pytest.raises(InvalidInputError, match="param_space"):
            pair.restore_ours(rounds[0]["flags"])
        return ["not started"]
    made = read_experiment(open_store(str(pair.ours)))
    assert not search_is_exhausted(made.state) or made.samples_left == 0, "samples are left"
    ends: list[str] = []
    torn: set[str] = set()
    unknown: set[str] = set()
    for each in rounds:
        if ends and recipe["asha"]:
            return ends  # Ray has put the rows in an order of chance (a set), and ASHA judges in it
        before = pair.describe(pair.theirs)["trials"]
        torn |= _torn_trials(before)  # once the numbers differ, they do so in all later rounds
        unknown |= _rows_of_nobody(pair.theirs, before)
        if each["healed"]:
            cause.unlink(missing_ok=True)
        pair.trainable = f"{MODULE}:{_asking(recipe, each['resources'])}"
        end = pair.restore(each["flags"], strategy=each["strategy"])
        if end.ray_hung:  # see docs/conformance.md; ours has ended
            return [*ends, "Ray hung"]
        if end.ray_lost:
            assert any(known in end.ray_lost for known in LOST_BY_RAY), end.ray_lost
            assert end.summary is None or not end.summary.broke_off, end.summary.broke_off
            assert len(end.ours["trials"]) >= len(made.state.trials), "we have lost it, too"
            return [*ends, "Ray lost it"]
        is_named = "trial_dirname_creator" in recipe["creators"]
        _compare(end.ours, end.theirs, known, torn, unknown, is_named)
        ends.append(end.summary.headline().partition(": ")[2] if end.summary else "nothing to do")
    shutil.rmtree(scratch)
    return ends


def _asking(recipe: dict, resources: str) -> str:
    """Return the trainable that asks for these resources; one by one stays one by one."""
    if resources == "same" or recipe["one_by_one"]:
        resources = recipe["resources"]
    return f"{recipe['kind']}_asking.{resources}"


def _torn_trials(trials: list[dict]) -> set[str]:
    """Return the configs of trials whose directories hold checkpoints that no state names.

    The driver died between an upload and the snapshot that would have told of it. A trial that is
    started over has another id, but the same config, and goes on with the old one's numbers.
    """
    return {
        trial["config"]
        for trial in trials
        if set(trial["checkpoints"]) - {f"checkpoint_{n:06}" for n in range(trial["index"] + 1)}
    }


def _rows_of_nobody(experiment: Path, trials: list[dict]) -> set[str]:
    """Return the results in directories of which the state knows no trial, as JSON.

    The driver died before it saved that it had drawn these. They are drawn again, with the same id.
    """
    known = {trial["dir"] for trial in trials}
    return {
        json.dumps(stable(json.loads(line)))
        for path in experiment.glob("*/result.json")
        if path.parent.name not in known
        for line in path.read_text().splitlines()
    }


def _compare(
    mine: dict, his: dict, known: set[str], torn: set[str], unknown: set[str], is_named: bool
) -> None:
    mine, his = (json.loads(json.dumps(each)) for each in (mine, his))
    assert (mine["errors"], mine["terminated"]) == (his["errors"], his["terminated"])
    assert len(mine["trials"]) == len(his["trials"])
    originals = {trial["trial_id"] for trial in mine["trials"]} & {
        trial["trial_id"] for trial in his["trials"]
    }
    for one, other in zip(mine["trials"], his["trials"], strict=True):
        is_torn = one["config"] in torn
        if one["trial_id"] != other["trial_id"]:  # restarted: Ray draws a random id
            assert not {one["trial_id"], other["trial_id"]} & originals
            for each in (one, other):
                each["trial_id"] = each["dir"] = "new"
        elif one["dir"] not in known and one["dir"] and not is_named:  # now: named after the time
            for each in (one, other):
                each["dir"] = each["dir"][:-19]
        if other["num_failures"] and other["max_failures"]:
            _allow_lost_rows(one, other, unknown)
        if is_torn:
            # Ray, restored from the older snapshot, writes over what is there; ours number on after it
            for each in (one, other):
                _forget_numbers(each)
        for name in other:
            # as JSON: there, unlike in Python, NaN is NaN, and 1 is neither 1.0 nor true
            assert json.dumps(one[name]) == json.dumps(other[name]), (
                name, "ours", one[name], "Ray's", other[name], one,
            )  # fmt: skip


def _allow_lost_rows(mine: dict, his: dict, unknown: set[str]) -> None:
    """Allow that Ray has lost rows: when it tries a trial again, those that were not uploaded yet.

    It gets the file from the storage then, and what came before is gone; we upload it before. In a
    directory that has the same name each time, it may get the file of a trial of which no state knows.
    """
    ours = iter([json.dumps(row) for row in mine["rows"]])
    rows = [text for row in his["rows"] if (text := json.dumps(row)) not in unknown]
    if len(rows) < len(mine["rows"]) and all(row in ours for row in rows):
        for trial in (mine, his):
            trial["rows"] = trial["csv_rows"] = "some are lost"


def _forget_numbers(trial: dict) -> None:
    """Put in the place of each checkpoint's name what it holds."""
    contents = trial.pop("contents")
    trial.pop("checkpoints")  # those that nobody names stay with us
    trial.pop("index")
    trial["checkpoint"] = contents.get(trial["checkpoint"])
    trial["kept"] = [contents.get(name) for name in trial["kept"]]
    rows = [] if isinstance(trial["rows"], str) else trial["rows"]
    for row in (*rows, trial["last_result"]):
        if row.get("checkpoint_dir_name"):
            row["checkpoint_dir_name"] = "there"
