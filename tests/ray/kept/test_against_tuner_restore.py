"""The end of a restore equals the end of `Tuner.restore` on a copy of the same experiment.

Statuses x flags x kinds of trainable, on local disk and on a real S3 server. What Ray does is never
written down here: it is asked, on a copy. Only what differs from run to run (times, pids) is left out.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airflow_tune_restore.experiments import layout
from tests.support import ROOT
from tests.support.experiments.failed import TRAINABLES, environment, make_killed_experiment

AT_A_TIME = 3
KINDS = (
    "sparse retries extras kept class registered with_parameters with_resources trainer"
).split()


@dataclass(frozen=True)
class Case:
    """One experiment, restored twice: by Ray and by us."""

    name: str
    kind: str
    options: tuple[str, ...] = ()  # of `tune-restore restore`
    flags: dict[str, Any] = field(default_factory=dict)  # of Tuner.restore
    on_s3: bool = False
    healed: bool = True


CASES = [
    Case("errored, no flag", "errored"),
    Case("errored, resumed", "errored", ("--resume-errored",), {"resume_errored": True}),
    Case("errored, restarted", "errored", ("--restart-errored",), {"restart_errored": True}),
    Case(
        "errored, both",
        "errored",
        ("--resume-errored", "--restart-errored"),
        {"resume_errored": True, "restart_errored": True},
    ),
    Case("killed, resumed", "killed"),
    Case(
        "killed, not resumed", "killed", ("--no-resume-unfinished",), {"resume_unfinished": False}
    ),
    *(Case(kind, kind, ("--resume-errored",), {"resume_errored": True}) for kind in KINDS),
    Case("asha, one run of all", "asha", ("--resume-errored",), {"resume_errored": True}),
    Case("pbt, one run of all", "pbt", ("--resume-errored",), {"resume_errored": True}),
    Case(
        "uncoupled, forced into one run",
        "limited",
        ("--resume-errored", "--strategy", "whole_experiment"),
        {"resume_errored": True},
    ),
    Case("killed, samples left", "left"),
    Case("killed, one run draws", "left", ("--strategy", "whole_experiment")),
    Case("errored on S3", "errored", ("--resume-errored",), {"resume_errored": True}, on_s3=True),
    Case("killed on S3", "killed", on_s3=True),
]
AGAIN = Case(
    "errored, fails again", "errored", ("--resume-errored",), {"resume_errored": True}, healed=False
)


@pytest.fixture(scope="module")
def originals(failed_experiments, tmp_path_factory):
    """The experiments of all cases; `left` for us alone: Ray draws samples where it was made."""
    kinds = {case.kind for case in CASES} - {"left"}
    own = make_killed_experiment(tmp_path_factory.mktemp("original"), "left")
    return {"left": own, **{kind: failed_experiments[kind] for kind in sorted(kinds)}}


@pytest.fixture(scope="module")
def theirs(originals, s3, tmp_path_factory):
    """Ray's own restores of all cases, in one process, and what they came to."""
    scratch = tmp_path_factory.mktemp("theirs")
    return {
        **_restored_by_ray(CASES, originals, s3, scratch, healed=True),
        **_restored_by_ray([AGAIN], originals, s3, scratch, healed=False),
    }


@pytest.fixture(scope="module")
def ours(originals, s3, tmp_path_factory):
    """Our restores of all cases, some at a time: most of a restore is waiting for Ray to start."""
    scratch = tmp_path_factory.mktemp("ours")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        cases = [*CASES, AGAIN]
        ends = list(pool.map(lambda case: _restored_by_us(case, originals, s3, scratch), cases))
    described = _describe([end.uri for end in ends])
    for end, description in zip(ends, described, strict=True):
        end.described.update(description)
    return {case.name: end for case, end in zip(cases, ends, strict=True)}


@dataclass(frozen=True)
class End:
    """How one of our restores ended."""

    uri: str
    exit_code: int
    output: str
    before: dict[str, bytes]
    after: dict[str, bytes]
    described: dict[str, Any] = field(default_factory=dict)


def _restored_by_us(case, originals, s3, scratch) -> End:
    uri = _copy(case, originals, s3, scratch, "ours")
    before = _root_files(uri)
    command = ["-m", "airflow_tune_restore.cli.app", "restore", uri]
    command += ["--trainable", TRAINABLES[case.kind], "--import", "tests.trainables"]
    command += ["--stale-after", "0", *case.options]
    done = _python(command, healed=case.healed, check=False)
    return End(uri, done.returncode, done.stdout + done.stderr, before, _root_files(uri))


def _restored_by_ray(cases, originals, s3, scratch, *, healed) -> dict[str, Any]:
    uris = {case.name: _copy(case, originals, s3, scratch, "theirs") for case in cases}
    plan = [
        {"uri": uris[case.name], "trainable": TRAINABLES[case.kind], "flags": case.flags}
        for case in cases
    ]
    (scratch / "cases.json").write_text(json.dumps(plan))
    before = set(originals["left"].iterdir())
    _python(
        ["-m", "tests.support.ray.tuner_restore", "restore", str(scratch / "cases.json")],
        healed=healed,
    )
    for path in set(originals["left"].iterdir()) - before:
        shutil.rmtree(path)  # see _compare
    return dict(zip(uris, _describe(list(uris.values())), strict=True))


@pytest.mark.parametrize("case", [*CASES, AGAIN], ids=lambda case: case.name)
def test_a_restore_ends_as_tuner_restore_ends(case, ours, theirs):
    end = ours[case.name]
    assert end.exit_code == (0 if case.healed else 1), end.output[-5000:]
    _compare(end.described, theirs[case.name], case)
    # nothing Ray wrote was touched, and at most one state file was added by each commit
    assert {name: end.after[name] for name in end.before} == end.before
    added = set(end.after) - set(end.before)
    # and beside it the states of searcher and callbacks, if there are any
    most = (
        3 if case.kind == "left" else 2 if case.kind in ("asha", "pbt", "limited", "extras") else 1
    )
    assert len(added) <= most
    assert all(layout.is_committed(name) for name in added)


def _compare(ours: dict[str, Any], theirs: dict[str, Any], case: Case) -> None:
    restarted = "--restart-errored" in case.options
    assert (ours["errors"], ours["terminated"]) == (theirs["errors"], theirs["terminated"])
    assert len(ours["trials"]) == len(theirs["trials"])
    for mine, his in zip(ours["trials"], theirs["trials"], strict=True):
        if restarted and mine["trial_id"] != his["trial_id"]:
            # a new trial has a random id with Ray, and a directory named after it
            for trial in (mine, his):
                trial["trial_id"] = trial["dir"] = "new"
        if case.kind == "left":
            # a directory made now is named after the time
            for trial in (mine, his):
                trial["dir"] = trial["dir"][:-19]
        if case.kind == "left" and mine["trial_id"].endswith(("_00002", "_00003")):
            # A searcher that Ray restores still holds the place the experiment was moved from, and draws
            # its samples there (Ray 2.60). Nobody can want that: ours lie where the experiment lies.
            assert (his["checkpoints"], his["rows"]) == ([], [])
            assert [row["training_iteration"] for row in mine["rows"]] == [1, 2, 3, 4, 5, 6]
            for trial in (mine, his):
                trial["checkpoints"] = trial["rows"] = trial["csv_rows"] = "there"
                trial["contents"] = "there"
        for name in his:
            assert mine[name] == his[name], name


def _copy(case: Case, originals: dict[str, Path], s3: Any, scratch: Path, whose: str) -> str:
    """Copy the experiment; a moved directory restores at its new place."""
    if not case.on_s3:
        target = scratch / case.name.replace(" ", "-").replace(",", "")
        shutil.copytree(originals[case.kind], target)
        return str(target)
    import s3fs

    uri = f"{s3.url}/{whose}/{case.kind}"
    s3fs.S3FileSystem(skip_instance_cache=True).put(
        str(originals[case.kind]) + "/", uri + "/", recursive=True
    )
    return uri


def _root_files(uri: str) -> dict[str, bytes]:
    from airflow_tune_restore.storage.fs import open_store

    store = open_store(uri)
    return {
        entry.name: store.get(entry.name)
        for entry in store.list_dir()
        if not entry.is_dir and not entry.name.startswith(".")
    }


def _describe(uris: list[str]) -> list[dict[str, Any]]:
    done = _python(["-m", "tests.support.ray.tuner_restore", "describe", *uris])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("DESCRIBED ")]
    return json.loads(line.removeprefix("DESCRIBED "))


def _python(arguments: list[str], *, healed: bool = True, check: bool = True) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(TUNE_TEST_HEALED="1" if healed else "0", COLUMNS="200", **_aws()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def _aws() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
