"""The golden experiments that older Rays wrote, and a restore of one by Ray and by us."""

import shutil
from pathlib import Path

from tests.support import GOLDEN
from tests.support.ray.kept import Hosts
from tests.support.ray.pair import Pair

VERSIONS = [
    path.name.removeprefix("ray-")
    for path in sorted(GOLDEN.glob("ray-*"), key=lambda p: tuple(map(int, p.name[4:].split("."))))
]


def assert_restored_as_by_ray(hosts: Hosts, scratch: Path, version: str) -> None:
    theirs, ours = scratch / "theirs" / "killed", scratch / "ours" / "killed"
    for copy in (theirs, ours):
        shutil.copytree(GOLDEN / f"ray-{version}" / "killed", copy)
    pair = Pair(hosts, theirs, ours, "tests.golden.healed:train")
    ends = pair.restore({"resume_errored": True})
    ends.assert_same("dir")
    assert ends.column("status") == ["TERMINATED"] * 5
    for rows in ends.column("rows"):
        assert [row["training_iteration"] for row in rows] == [1, 2, 3, 4]
