"""The example sweeps of tests/golden are what a real Ray leaves."""

import re

import pytest

from tests.support.experiments.sweeps import KINDS, MADE, ends, make_sweep


def files(experiment) -> list[str]:
    """Return names without trial ids and times; TensorBoard's files are not kept."""
    names = [p.relative_to(experiment).as_posix() for p in experiment.rglob("*") if p.is_file()]
    names = [re.sub(r"train_\w{5}_", "train_ID_", name) for name in names if "tfevents" not in name]
    return sorted(re.sub(r"\d{4}(-\d\d){2}_\d\d(-\d\d){2}", "TIME", name) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_ray_leaves_what_is_golden(kind, tmp_path):
    made = make_sweep(kind, tmp_path)
    assert ends(made) == ends(MADE / kind)
    assert files(made) == files(MADE / kind)
