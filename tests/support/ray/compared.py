"""One failed experiment restored twice, by `Tuner.restore` and by us, and the two ends compared."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.failed import TRAINABLES
from tests.support.ray.kept import Hosts
from tests.support.storage.servers import Server

RESUMED = {"resume_errored": True}


@dataclass(frozen=True)
class Case:
    """What is restored, and how.

    Args:
        name: For people, and of its directory.
        kind: Of the experiment.
        flags: Of `Tuner.restore`, and ours.
        strategy: Ours.
        on_s3: Whether it lies there.
        healed: Whether the cause of the failures is gone.
    """

    name: str
    kind: str
    flags: Mapping[str, bool] = field(default_factory=dict)
    strategy: str = "auto"
    on_s3: bool = False
    healed: bool = True

    def __str__(self) -> str:
        """Return it as pytest shows it."""
        return self.name


@dataclass(frozen=True)
class Compared:
    """How both restores ended.

    Args:
        ours: What Ray reads of ours.
        theirs: What it reads of its own.
        summary: Of our commit; None if there was nothing to do.
        before: Names and contents of what lay in our experiment's directory.
        after: The same, after the restore.
    """

    ours: dict[str, Any]
    theirs: dict[str, Any]
    summary: CommitSummary | None
    before: dict[str, bytes]
    after: dict[str, bytes]


def restore_both(
    hosts: Hosts, case: Case, original: Path, scratch: Path, s3: Server | None = None
) -> Compared:
    """Restore one copy of the experiment by Ray, and another by us."""
    theirs, ours = (_copy(case, original, scratch / whose, s3) for whose in ("theirs", "ours"))
    env = {"TUNE_TEST_HEALED": "1" if case.healed else "0", **(s3.env if s3 else {})}
    asked = {"uri": theirs, "trainable": TRAINABLES[case.kind], "flags": dict(case.flags)}
    assert not hosts.ray.call("restore", asked, **env)["hung"]
    before = _root_files(ours)
    summary = hosts.restore_by_us(
        ours, TRAINABLES[case.kind], flags=ResumeFlags.from_flags(**case.flags),
        strategy=case.strategy, env=env, imports=("tests.trainables",),
    )  # fmt: skip
    assert not hosts.runner.was_stopped, "our runner hung"
    described = [hosts.ray.call("describe", uri, **env) for uri in (ours, theirs)]
    return Compared(*described, summary, before, _root_files(ours))


def compare(ours: dict[str, Any], theirs: dict[str, Any], case: Case) -> None:
    """Everything that is described of both is the same, but for what nobody can want or know."""
    assert (ours["errors"], ours["terminated"]) == (theirs["errors"], theirs["terminated"])
    assert len(ours["trials"]) == len(theirs["trials"])
    for mine, his in zip(ours["trials"], theirs["trials"], strict=True):
        if case.flags.get("restart_errored") and mine["trial_id"] != his["trial_id"]:
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


def _copy(case: Case, original: Path, scratch: Path, s3: Server | None) -> str:
    """Copy the experiment; a moved directory restores at its new place, under a new name, too."""
    if s3 is None:
        name = case.name.replace(" ", "-").replace(",", "")
        return str(shutil.copytree(original, scratch / name))
    return s3.upload(original, f"{scratch.parent.name}/{scratch.name}/{case.kind}")


def _root_files(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {
        entry.name: store.get(entry.name)
        for entry in store.list_dir()
        if not entry.is_dir and not entry.name.startswith(".")
    }
