"""Flags: strings and enums alike, everything else refused."""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.restore.flags import ResumeFlags, ResumeType


def test_resume_wins_over_restart():
    flags = ResumeFlags.from_flags(resume_errored=True, restart_errored=True)
    assert flags.choice_for(TrialStatus.ERROR) is ResumeType.RESUME


def test_the_per_status_form_takes_strings_and_rays_own_enum():
    from ray.tune import ResumeConfig

    flags = ResumeFlags.parse({"finished": "restart", "errored": ResumeConfig.ResumeType.RESUME})
    assert flags == ResumeFlags(finished=ResumeType.RESTART, errored=ResumeType.RESUME)


@pytest.mark.parametrize(
    "choices", [{"finished": "again"}, {"errored": None}, {"failed": "resume"}, {"errored": 1}]
)
def test_anything_else_is_refused(choices):
    with pytest.raises(InvalidInputError):
        ResumeFlags.parse(choices)
