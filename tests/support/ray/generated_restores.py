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
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError, TuneRestoreError
from airflow_tune_restore.experiments.experiment import must_have_drawn_all
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.storage.fs import open_store
from tests.support.ray.kept import HostError, Hosts
from tests.support.ray.pair import Pair, make_pair

KINDS = ["skip", "resume", "restart"]
FLAGS = ["resume_unfinished", "resume_errored", "restart_errored"]


@st.composite
def experiments(draw) -> dict[str, Any]:
    """What `drawn.make_tuner` makes, and when its driver dies."""
    kind = draw(st.sampled_from(["function", "class"]))
    trials = []
    for number in range(draw(st.sampled_from([1, 2, 2, 3]))):
        iterations = draw(st.integers(1, 4))
        first = 1 if kind == "function" else 0  # a class may fail in setup
        trials.append(
            {
                "name": f"t{number}",
                "iterations": iterations,
                "checkpoint_every": draw(st.sampled_from([1, 1, 2, 0])),
                "factor": draw(st.integers(1, 3)),
                "fails_at": draw(st.none() | st.integers(first, iterations)),
            }
        )
    num_to_keep = draw(st.sampled_from([None, None, 1, 2]))
    dies_after = draw(st.sampled_from([1, 2, 3, 4, 6, None, None]))
    if dies_after is None and all(trial["fails_at"] is None for trial in trials):
        trials[0]["fails_at"] = trials[0]["iterations"]  # or there is nothing to restore
    return {
        "kind": kind,
        "trials": trials,
        "num_to_keep": num_to_keep,
        "by_score": num_to_keep is not None and draw(st.booleans()),
        "frequency": draw(st.sampled_from([1, 1, 2, 0])),
        "checkpoint_at_end": draw(st.booleans()),
        "cpus": draw(st.sampled_from([4, 2])),  # of four: one trial at a time, or two
        "concurrent": draw(st.sampled_from([None, None, None, None, 1])),
        "max_failures": draw(st.sampled_from([0, 0, 1])),
        "dies_after": dies_after,
        "period": draw(st.sampled_from(["0", "0", "1000"])),  # of the experiment's snapshots
    }


@st.composite
def restores(draw) -> dict[str, Any]:
    """How it is restored: by flags or by status, and whether the cause of its failures is gone."""
    by_status = draw(st.booleans())
    if by_status:
        flags = {"per_status": {name: draw(st.sampled_from(KINDS))
                                for name in ("finished", "unfinished", "errored")}}  # fmt: skip
    else:
        flags = {name: draw(st.booleans()) for name in FLAGS}
    return {
        "flags": flags,
        "healed": draw(st.sampled_from([True, True, False])),
        "strategy": draw(st.sampled_from(["auto", "auto", "whole_experiment"])),
    }


def find_differences(
    hosts: Hosts, scratch: Path, examples: int, *, derandomize: bool
) -> list[dict[str, Any]]:
    """Run so many examples, every one of them, and return those that ended in two ways."""
    found: list[dict[str, Any]] = []
    count = 0

    @settings(
        max_examples=examples,
        derandomize=derandomize,
        phases=[Phase.generate],  # an example takes seconds: the first is as good as the smallest
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
    )
    @given(recipe=experiments(), rounds=st.lists(restores(), min_size=1, max_size=2))
    def differ(recipe: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
        nonlocal count
        count += 1
        example = {"number": count, "recipe": recipe, "rounds": rounds}
        _record({"begins": example})
        try:
            example["result"] = _run(hosts, scratch / f"{count:04}", recipe, rounds)
        except (AssertionError, HostError, TuneRestoreError) as difference:
            example["difference"] = f"{type(difference).__name__}: {difference}"
            found.append(example)
        _record(example)

    differ()
    return found


def _record(entry: dict[str, Any]) -> None:
    if record := os.environ.get("CONFORMANCE_RECORD"):
        with Path(record).open("a") as file:
            file.write(json.dumps(entry, default=str) + "\n")


def _run(hosts: Hosts, scratch: Path, recipe: dict, rounds: list[dict]) -> list[str]:
    """Make one experiment, restore both copies of it in turn, and compare after each round."""
    scratch.mkdir()
    cause = scratch / "cause"
    cause.touch()
    pair = make_pair(
        hosts, scratch, "make_tuner", module="tests.support.experiments.generated",
        trainable={"function": "function", "class": "Class"}[recipe["kind"]],
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
    assert not must_have_drawn_all(made.state) or made.samples_left == 0, "samples are left"
    ends: list[str] = []
    torn: set[str] = set()
    for each in rounds:
        torn |= _torn_trials(pair)  # once the numbers differ, they do so in all later rounds
        if each["healed"]:
            cause.unlink(missing_ok=True)
        end = pair.restore(each["flags"], strategy=each["strategy"])
        if end.ray_hung:  # see docs/conformance.md; ours has ended
            return [*ends, "Ray hung"]
        _compare(end.ours, end.theirs, known, torn)
        ends.append(end.summary.headline().partition(": ")[2] if end.summary else "nothing to do")
    shutil.rmtree(scratch)
    return ends


def _torn_trials(pair: Pair) -> set[str]:
    """Return the trials whose directories hold checkpoints that no state names.

    The driver died between an upload and the snapshot that would have told of it.
    """
    return {
        trial["trial_id"]
        for trial in pair.describe(pair.theirs)["trials"]
        if set(trial["checkpoints"]) - {f"checkpoint_{n:06}" for n in range(trial["index"] + 1)}
    }


def _compare(mine: dict, his: dict, known: set[str], torn: set[str]) -> None:
    mine, his = (json.loads(json.dumps(each)) for each in (mine, his))
    assert (mine["errors"], mine["terminated"]) == (his["errors"], his["terminated"])
    assert len(mine["trials"]) == len(his["trials"])
    originals = {trial["trial_id"] for trial in mine["trials"]} & {
        trial["trial_id"] for trial in his["trials"]
    }
    for one, other in zip(mine["trials"], his["trials"], strict=True):
        is_torn = one["trial_id"] in torn
        if one["trial_id"] != other["trial_id"]:  # restarted: Ray draws a random id
            assert not {one["trial_id"], other["trial_id"]} & originals
            for each in (one, other):
                each["trial_id"] = each["dir"] = "new"
        elif one["dir"] not in known and one["dir"]:  # started now: named after the time
            for each in (one, other):
                each["dir"] = each["dir"][:-19]
        if is_torn:
            # Ray, restored from the older snapshot, writes over what is there; ours number on after it
            for each in (one, other):
                _forget_numbers(each)
        for name in other:
            assert one[name] == other[name], (name, "ours", one[name], "Ray's", other[name], one)


def _forget_numbers(trial: dict) -> None:
    """Put in the place of each checkpoint's name what it holds."""
    contents = trial.pop("contents")
    trial.pop("checkpoints")  # those that nobody names stay with us
    trial.pop("index")
    trial["checkpoint"] = contents.get(trial["checkpoint"])
    trial["kept"] = [contents.get(name) for name in trial["kept"]]
    for row in (*trial["rows"], trial["last_result"]):
        if row.get("checkpoint_dir_name"):
            row["checkpoint_dir_name"] = "there"
