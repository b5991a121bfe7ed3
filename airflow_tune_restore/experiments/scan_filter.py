"""Which directories below a prefix are scanned, and which experiments are reported."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from airflow_tune_restore.experiments.path_glob import matches_path

MAX_DEPTH = 4
"""How many levels below a prefix are scanned (`team/user/project/experiment`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFilter:
    """Globs over paths below the prefix, and how many levels to scan.

    A pattern without a slash is compared with every name on the way (`tmp*`); one with slashes with the
    path from the prefix (`team_a/*/lr-*`), in which `**` stands for any number of directories.

    Args:
        include: Report only experiments that match one of these, or lie below a directory that does.
        exclude: Do not list directories that match one of these.
        max_depth: Levels below the prefix; 0 for the prefix alone.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_depth: int = MAX_DEPTH

    @property
    def includes_all(self) -> bool:
        """Whether it leaves out nothing except what lies deeper than usual."""
        return not self.include and not self.exclude and self.max_depth >= MAX_DEPTH

    def includes(self, path: str) -> bool:
        """Whether an experiment at this path is reported. The prefix itself always is."""
        if not path or not self.include:
            return True
        names = path.split("/")
        above = ["/".join(names[: end + 1]) for end in range(len(names))]
        return any(matches_path(one, pattern) for one in above for pattern in self.include)

    def descends_into(self, path: str) -> bool:
        """Whether a directory is listed: it is not excluded, and something below it may be included."""
        if any(matches_path(path, pattern) for pattern in self.exclude):
            return False
        return self.includes(path) or any(_may_match_below(path, p) for p in self.include)


def _may_match_below(path: str, pattern: str) -> bool:
    pattern = pattern.strip("/")
    patterns = pattern.split("/")
    if len(patterns) == 1 or "**" in patterns:
        return True
    names = path.split("/")
    return len(names) < len(patterns) and all(map(fnmatchcase, names, patterns))
