"""One experiment twice: `Tuner.restore` restores the one copy, we the other."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_tune_restore.restore.flags import ResumeFlags
from airflow_tune_restore.restore.summary import CommitSummary
from tests.support.ray.kept import Hosts

RECIPES = "tests.support.experiments.recipes"
SNAPSHOTS_AT_ONCE = {"TUNE_GLOBAL_CHECKPOINT_S": "0"}
NAME = "experiment"


@dataclass
class Ends:
    """What both restores came to; Ray's may have waited for ever, or have lost the experiment."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    summary: CommitSummary | None
    ray_hung: bool = False
    ray_lost: str = ""

    def column(self, name: str) -> list[Any]:
        """Return one value of every trial, ours, once it is known to be Ray's, too."""
        mine, his = ([trial[name] for trial in each["trials"]] for each in (self.ours, self.theirs))
        assert mine == his, (name, "ours", mine, "Ray's", his)
        return mine

    def assert_same(self, *but: str) -> None:
        """Everything that is described of both is the same, but for what the caller says."""
        for name in self.ours["trials"][0]:
            if name not in but:
                self.column(name)
        for name in ("errors", "terminated"):
            assert self.ours[name] == self.theirs[name]


@dataclass
class Pair:
    """The two copies. Ray's lies where it was made, ours was moved.

    Attributes:
        is_run: Whether `tune.run` made it, so that there is no tuner.pkl.
        search_alg: The searcher that is then named at a restore; Ray's own needs none.
    """

    hosts: Hosts
    theirs: Path
    ours: Path
    trainable: str
    param_space: str | None = None
    is_run: bool = False
    search_alg: str | None = None
    env: dict[str, str] = field(default_factory=lambda: dict(SNAPSHOTS_AT_ONCE))

    def restore(
        self, flags: dict[str, Any] | None = None, *, strategy: str = "auto",
        **options: Any,
    ) -> Ends:  # fmt: skip
        """Restore both with the same flags, and describe them."""
        flags = flags or {}
        case = {"uri": str(self.theirs), "trainable": self.trainable, "flags": flags,
                "param_space": self.param_space, "is_run": self.is_run,
                "search_alg": self.search_alg}  # fmt: skip
        answer = self.hosts.ray.call("restore", case, **self.env)
        summary = self.restore_ours(flags, strategy=strategy, **options)
        theirs, ours = (self.describe(path) for path in (self.theirs, self.ours))
        return Ends(
            ours=ours,
            theirs=theirs,
            summary=summary,
            ray_hung=answer["hung"],
            ray_lost=answer["lost"],
        )

    def restore_ours(
        self, flags: dict[str, Any] | None = None, *, strategy: str = "auto", **options: Any
    ) -> CommitSummary | None:
        """Restore ours alone."""
        flags = flags or {}
        parsed = (
            ResumeFlags.parse(flags["per_status"])
            if "per_status" in flags
            else ResumeFlags.from_flags(**flags)
        )
        if self.search_alg:
            options["search_alg"] = self.search_alg
        summary = self.hosts.restore_by_us(
            str(self.ours), self.trainable, flags=parsed, strategy=strategy,
            param_space=self.param_space, env=self.env, **options,
        )  # fmt: skip
        assert not self.hosts.runner.was_stopped, "our runner hung"
        return summary

    def describe(self, experiment: Path) -> dict[str, Any]:
        return self.hosts.ray.call("describe", str(experiment))


def make_pair(
    hosts: Hosts, scratch: Path, tuner: str, *, trainable: str, dies_after: int | None = None,
    dies_with: tuple[str, ...] = (), is_saved: bool = False, env: dict[str, str] | None = None,
    module: str = RECIPES, is_run: bool = False, search_alg: str | None = None,
    **arguments: Any,
) -> Pair:  # fmt: skip
    """Make an experiment with `module:tuner(directory, name, **arguments)`, and copy it.

    With `dies_after` its driver dies once so many results were taken in and there are trials of the
    statuses `dies_with`; with `is_saved` not before it has saved what it knows.
    """
    theirs, ours, image = scratch / "made" / NAME, scratch / "moved" / NAME, scratch / "image"
    recipe = {
        "tuner": f"{module}:{tuner}",
        "arguments": {"directory": str(theirs.parent), "name": NAME, **arguments},
        "dies_after": dies_after,
        "dies_with": dies_with,
        "is_saved": is_saved,
        "image": str(image),
    }
    made = hosts.ray.call("make", recipe, **{**SNAPSHOTS_AT_ONCE, **(env or {})})
    assert made["died"] or dies_after is None or module != RECIPES, "it ended before it could die"
    if made[
        "died"
    ]:  # put it back where it was: a searcher that Ray restores draws its samples there
        shutil.rmtree(theirs)
        image.rename(theirs)
    shutil.copytree(theirs, ours)
    trainable = trainable if ":" in trainable else f"{module}:{trainable}"
    search_alg = f"{module}:{search_alg}" if search_alg else None
    return Pair(hosts, theirs, ours, trainable, is_run=is_run, search_alg=search_alg)
