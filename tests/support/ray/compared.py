"""One failed experiment restored twice, by `Tuner.restore` and by us, and the two ends compared."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.summary import CommitSummary
from airflow_tune_restore.storage.base import ObjectStore
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
        flags: Of `Tuner.restore`, and ours; `per_status` stands for its `_resume_config`.
        strategy: Ours.
        healed: Whether the cause of the failures is gone.
        statuses: What the state is to say of trials instead, by their role.
    """

    name: str
    kind: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "auto"
    healed: bool = True
    statuses: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as pytest shows it."""
        return self.name

    @property
    def restarts(self) -> bool:
        """Whether trials start over, under new ids."""
        choices = self.flags.get("per_status", {}).values()
        return bool(self.flags.get("restart_errored")) or "restart" in choices


@dataclass(frozen=True)
class Ended:
    """How our restore ended.

    Args:
        described: What Ray reads of it.
        summary: Of our commit; None if there was nothing to do.
        before: Names and contents of what lay in our experiment's directory.
        after: The same, after the restore.
    """

    described: dict[str, Any]
    summary: CommitSummary | None
    before: dict[str, bytes]
    after: dict[str, bytes]


def ask_ray(
    hosts: Hosts, case: Case, original: Path, scratch: Path, s3: Server | None = None
) -> dict[str, Any]:
    """Let Ray restore a copy of the experiment, and return what it then reads."""
    uri, env = _copy(case, original, scratch / "theirs", s3), _env(case, s3)
    asked = {"uri": uri, "trainable": TRAINABLES[case.kind], "flags": dict(case.flags)}
    assert not hosts.ray.call("restore", asked, **env)["hung"]
    return hosts.ray.call("describe", uri, **env)


def restore_ours(
    hosts: Hosts, case: Case, original: Path, scratch: Path, s3: Server | None = None
) -> Ended:
    """Restore another copy by us, and let Ray read it."""
    uri, env = _copy(case, original, scratch / "ours", s3), _env(case, s3)
    store = open_store(uri)
    before = _root_files(store)
    flags = (
        ResumeFlags.parse(case.flags["per_status"])
        if "per_status" in case.flags
        else ResumeFlags.from_flags(**case.flags)
    )
    summary = hosts.restore_by_us(
        uri, TRAINABLES[case.kind], flags=flags, strategy=case.strategy, env=env,
        imports=("tests.trainables",),
    )  # fmt: skip
    assert not hosts.runner.was_stopped, "our runner hung"
    return Ended(hosts.ray.call("describe", uri, **env), summary, before, _root_files(store))


def assert_untouched(ended: Ended, most: int) -> None:
    """Nothing Ray wrote was changed; commits added so many files at most, states and searchers'."""
    assert {name: ended.after[name] for name in ended.before} == ended.before
    added = set(ended.after) - set(ended.before)
    assert len(added) <= most
    assert all(layout.is_committed(name) for name in added)


def compare(ours: dict[str, Any], theirs: dict[str, Any], case: Case) -> None:
    """Everything that is described of both is the same, but for what nobody can want or know."""
    assert (ours["errors"], ours["terminated"]) == (theirs["errors"], theirs["terminated"])
    assert len(ours["trials"]) == len(theirs["trials"])
    for mine, his in zip(ours["trials"], theirs["trials"], strict=True):
        if case.restarts and mine["trial_id"] != his["trial_id"]:
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


def _env(case: Case, s3: Server | None) -> dict[str, str]:
    return {"TUNE_TEST_HEALED": "1" if case.healed else "0", **(s3.env if s3 else {})}


def _copy(case: Case, original: Path, scratch: Path, s3: Server | None) -> str:
    """Copy the experiment; a moved directory restores at its new place, under a new name, too."""
    name = case.name.replace(" ", "-").replace(",", "")
    copy = Path(shutil.copytree(original, scratch / name))
    if case.statuses:
        _write_statuses(copy, case.statuses)
    return (
        str(copy) if s3 is None else s3.upload(copy, f"{scratch.parent.name}/{scratch.name}/{name}")
    )


def _write_statuses(experiment: Path, statuses: Mapping[str, str]) -> None:
    """Let the state say that trials had other statuses, and had not failed, when the driver died."""
    (path,) = experiment.glob("experiment_state-*.json")
    state = json.loads(path.read_text())
    for row in state["trial_data"]:
        trial, run = map(json.loads, row)
        if trial["config"]["role"] in statuses:
            trial["status"] = statuses[trial["config"]["role"]]
            run |= {"num_failures": 0, "error_filename": None, "pickled_error_filename": None}
        row[:] = json.dumps(trial), json.dumps(run)
    path.write_text(json.dumps(state))


def _root_files(store: ObjectStore) -> dict[str, bytes]:
    return {
        entry.name: store.get(entry.name)
        for entry in store.list_dir()
        if not entry.is_dir and not entry.name.startswith(".")
    }
