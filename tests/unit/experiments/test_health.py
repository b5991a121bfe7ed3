"""Alive or dead: what each piece of evidence does to the verdict."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.experiments.evidence import (
    MAX_PATIENCE,
    DriverStatus,
    Evidence,
    EvidenceKind,
    describe_evidence,
    patience,
)
from airflow_tune_restore.experiments.health import Health, judge, judge_unstarted
from airflow_tune_restore.experiments.state_summary import StateSummary
from airflow_tune_restore.protocol.lease_objects import Lease, LeaseStatus

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HALF_HOUR = timedelta(minutes=30)


def summary(**fields) -> StateSummary:
    return StateSummary(
        **{"state_file": "experiment_state-x.json", "trials": {"RUNNING": 1}, **fields}
    )


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def evidence(minutes: float | None = 60, **fields) -> Evidence:
    return Evidence(root_written=None if minutes is None else ago(minutes), now=NOW, **fields)


def verdict(some: StateSummary, seen: Evidence, stale_after: timedelta = HALF_HOUR) -> Health:
    return judge(some, seen, stale_after=stale_after)[0]


def table(some: StateSummary, seen: Evidence) -> dict[str, tuple[str, str]]:
    """Return the lines of the table of evidence: found, and what it indicates."""
    counted = judge(some, seen, stale_after=HALF_HOUR).counted
    rows = describe_evidence(some, seen, counted, stale_after=HALF_HOUR)
    return {row.name: (row.found, row.indicates) for row in rows}


def restore(silent_seconds: float) -> LeaseStatus:
    lease = Lease(epoch=1, restore_id="r1", holder="somebody", ttl_seconds=120)
    return LeaseStatus(
        experiment="exp", lease=lease, claimed_at=None, seen_at=None, silent_seconds=silent_seconds
    )


def held(taken, seen):
    """Return that a restore took its lease and was last seen so many minutes ago."""
    return ((ago(taken), ago(seen)),)


@pytest.mark.parametrize(
    ("trials", "root", "health"),
    [
        (5, 90, Health.INTERRUPTED),  # its runner wrote this
        (4.8, 90, Health.INTERRUPTED),  # with the last upload, after its last heartbeat
        (4, 90, Health.RUNNING),  # something else did
        (31, 90, Health.INTERRUPTED),
        (21, 90, Health.RUNNING),  # before it began
        (5, 10, Health.RUNNING),  # a driver that was started since writes to the root
    ],
)
def test_what_a_restore_that_ended_wrote_to_its_trials_shows_no_living_driver(trials, root, health):
    seen = evidence(root, trials_written=ago(trials), held=held(20, 5))
    assert verdict(summary(), seen) is health


@pytest.mark.parametrize(
    ("marker", "root", "health"),
    [
        (15, 90, Health.INTERRUPTED),  # its runner wrote it
        (4, 90, Health.RUNNING),  # a driver that has just started wrote it
        (21, 90, Health.RUNNING),
        (15, 10, Health.RUNNING),  # a driver that was started since has written a state, too
        (15, 25, Health.RUNNING),
    ],
)
def test_rays_marker_is_no_sign_of_life_while_a_restore_held_the_lease(marker, root, health):
    seen = evidence(root, marker_written=ago(marker), held=held(20, 5))
    assert verdict(summary(), seen) is health


def test_rays_marker_counts_where_no_restore_was():
    seen = evidence(90, marker_written=ago(1))
    assert verdict(summary(), seen) is Health.RUNNING
    assert table(summary(), seen)[EvidenceKind.ROOT] == ("2026-01-01 11:59:00, 60 s ago", "alive")


def test_what_a_restore_that_lives_wrote_is_not_looked_at():
    seen = evidence(90, trials_written=ago(1), restore=restore(60.0), held=held(20, 1))
    assert verdict(summary(), seen) is Health.RUNNING


def test_silence_of_stale_after_is_death():
    assert verdict(summary(), evidence(29)) is Health.RUNNING
    assert verdict(summary(), evidence(30)) is Health.INTERRUPTED


def test_a_store_without_times_shows_no_death():
    assert verdict(summary(), evidence(None)) is Health.RUNNING


def test_a_write_in_the_future_does_not_mean_death():
    seen = evidence(-600)
    assert verdict(summary(), seen) is Health.RUNNING
    found, indicates = table(summary(), seen)[EvidenceKind.ROOT]
    assert "10 h in the future of the store's clock" in found
    assert indicates == "alive"
    assert "last written 10 h in the future" in judge(summary(), seen, stale_after=HALF_HOUR).reason


YEARS_AHEAD = NOW + timedelta(days=25_000)


def test_a_write_too_far_in_the_future_is_not_a_sign_of_life():
    """It would be one for years; a time zone explains a day."""
    seen = Evidence(root_written=YEARS_AHEAD, now=NOW)
    health, reason, _ = judge(summary(), seen, stale_after=HALF_HOUR)
    assert health is Health.INTERRUPTED
    assert "its files are dated more than 24 h in the future, which does not count" in reason
    assert table(summary(), seen)[EvidenceKind.ROOT][1] == "dead"


def test_such_a_write_does_not_hide_the_others():
    seen = evidence(29, trials_written=YEARS_AHEAD)
    assert verdict(summary(), seen) is Health.RUNNING
    assert verdict(summary(), evidence(31, trials_written=YEARS_AHEAD)) is Health.INTERRUPTED
    assert seen.last_write == ago(29)


def test_a_commit_dated_in_the_future_does_not_hide_a_living_driver():
    committed = {"committed_at": NOW + timedelta(days=400)}
    assert verdict(summary(), evidence(1, **committed)) is Health.RUNNING


@pytest.mark.parametrize("seconds", [-121, -2204157624, float("inf")])
def test_a_lease_without_an_age_is_not_a_running_restore(seconds):
    assert verdict(summary(), evidence(restore=restore(seconds))) is Health.INTERRUPTED


def test_a_trial_that_reports_every_two_hours_is_not_dead_after_one():
    slow = summary(longest_interval=7200.0)
    assert verdict(slow, evidence(60)) is Health.RUNNING
    assert verdict(slow, evidence(239)) is Health.RUNNING
    assert verdict(slow, evidence(240)) is Health.INTERRUPTED
    assert (
        "stale after 4 h, because an iteration of it takes 2 h"
        in judge(slow, evidence(60), stale_after=HALF_HOUR)[1]
    )


def test_a_driver_that_saves_every_hour_is_not_dead_after_two():
    rare = summary(snapshot_period=3600.0)
    assert verdict(rare, evidence(120)) is Health.RUNNING
    assert verdict(rare, evidence(180)) is Health.INTERRUPTED


def test_a_user_who_states_that_the_driver_is_dead_need_not_wait():
    slow = summary(longest_interval=7200.0, snapshot_period=3600.0)
    assert verdict(slow, evidence(0), timedelta()) is Health.INTERRUPTED
    assert verdict(slow, evidence(-1), timedelta()) is Health.INTERRUPTED  # clocks differ a little
    assert verdict(slow, evidence(None), timedelta()) is Health.INTERRUPTED


@pytest.mark.parametrize("lie", [1e300, 1e18])
def test_no_number_in_a_state_keeps_an_experiment_alive_for_ever(lie):
    assert patience(summary(longest_interval=lie), HALF_HOUR)[0] == MAX_PATIENCE


def test_a_restore_at_work_is_life_whatever_else_is_seen():
    for some in (summary(), summary(trials={"ERROR": 1}, samples_left=0)):
        assert verdict(some, evidence(600, restore=restore(10))) is Health.RUNNING
        assert verdict(some, evidence(600, restore=restore(120))) is not Health.RUNNING


def test_writes_to_a_trial_are_life_though_the_root_is_silent():
    assert verdict(summary(), evidence(60, trials_written=ago(5))) is Health.RUNNING


def test_a_sweep_that_was_started_again_in_the_same_place_is_alive_before_its_first_snapshot():
    ended = summary(trials={"ERROR": 1, "TERMINATED": 1}, samples_left=0)
    seen = Evidence(root_written=ago(5), tuner_written=ago(5), state_written=ago(600), now=NOW)
    assert verdict(ended, seen) is Health.RUNNING
    assert (
        verdict(ended, replace(seen, root_written=ago(31), tuner_written=ago(31))) is Health.ERRORED
    )
    # uploaded together with the last state
    assert verdict(ended, replace(seen, state_written=ago(5.5))) is Health.ERRORED


def test_errors_count_at_once_when_all_has_ended():
    ended = summary(trials={"ERROR": 1}, samples_left=0)
    assert verdict(ended, evidence(0)) is Health.ERRORED


def test_the_drivers_clock_decides_nothing_but_is_shown():
    ahead = summary(last_result=(NOW + timedelta(hours=5)).timestamp())
    seen = evidence(60, state_written=ago(60))
    assert verdict(ahead, seen) is Health.INTERRUPTED
    assert table(ahead, seen)[EvidenceKind.CLOCK] == ("6 h ahead of the store's", "")


def test_a_commit_of_a_restore_is_not_a_sign_of_a_driver():
    seen = evidence(1, committed_at=ago(1))
    assert verdict(summary(), seen) is Health.INTERRUPTED
    assert verdict(summary(), replace(seen, root_written=ago(0.5))) is Health.RUNNING


def unstarted(seen: Evidence, stale_after: timedelta = HALF_HOUR) -> tuple[Health, str]:
    return judge_unstarted("it was never started", seen, stale_after=stale_after)[:2]


def test_a_driver_that_has_just_begun_was_not_never_started():
    health, reason = unstarted(evidence(5))
    assert health is Health.RUNNING
    assert reason == "no trial of it is saved yet, last written 5 min ago (stale after 30 min)"
    assert unstarted(evidence(30)) == (Health.NOT_STARTED, "it was never started")
    assert unstarted(evidence(0), timedelta())[0] is Health.NOT_STARTED
    assert unstarted(evidence(60, restore=restore(10)))[1].startswith("restore r1 of somebody is")


def test_a_store_without_times_does_not_show_that_nothing_was_started():
    assert unstarted(evidence(None))[0] is Health.RUNNING


def test_not_checked_differs_from_nothing_found():
    seen = evidence(5)
    for kind in (EvidenceKind.TRIAL_DIRS, EvidenceKind.RESTORE, EvidenceKind.SAMPLES):
        assert table(summary(), seen)[kind] == ("not checked", "")
        seen = seen.with_check(kind)
    lines = table(summary(), seen)
    assert [
        lines[kind][0]
        for kind in (EvidenceKind.TRIAL_DIRS, EvidenceKind.RESTORE, EvidenceKind.SAMPLES)
    ] == [
        "none",
        "none",
        "unknown",
    ]


def test_of_what_has_ended_no_write_counts():
    lines = table(summary(trials={"TERMINATED": 2}, samples_left=0), evidence(1))
    assert {name: side for name, (_, side) in lines.items() if side} == {
        EvidenceKind.TRIALS: "ended",
        EvidenceKind.SAMPLES: "ended",
    }


def test_samples_that_are_left_are_what_makes_it_interrupted():
    lines = table(summary(trials={"TERMINATED": 1}, samples_left=4), evidence(60))
    assert lines[EvidenceKind.SAMPLES] == ("4 never drawn", "unfinished")
    assert (lines[EvidenceKind.TRIALS][1], lines[EvidenceKind.ROOT][1]) == ("", "dead")


def test_what_was_outvoted_did_not_count():
    lines = table(
        summary(), evidence(60, trials_written=ago(5)).with_check(EvidenceKind.TRIAL_DIRS)
    )
    assert (lines[EvidenceKind.ROOT][1], lines[EvidenceKind.TRIAL_DIRS][1]) == ("", "alive")
    lines = table(summary(), evidence(60, restore=restore(10)).with_check(EvidenceKind.RESTORE))
    assert {name for name, (_, side) in lines.items() if side} == {EvidenceKind.RESTORE}


def test_a_longer_patience_counts_where_it_made_the_difference():
    slow = summary(longest_interval=7200.0)
    assert [
        table(slow, evidence(minutes))[EvidenceKind.ALLOWED][1] for minutes in (5, 60, 300)
    ] == [
        "",
        "alive",
        "",
    ]


times = st.none() | st.floats(-600, 6000).map(ago)
states = st.builds(
    summary,
    trials=st.dictionaries(
        st.sampled_from(["RUNNING", "ERROR", "TERMINATED"]), st.integers(1, 3), min_size=1
    ),
    samples_left=st.none() | st.integers(0, 3),
    longest_interval=st.sampled_from([0.0, 7200.0]),
)
findings = st.builds(
    Evidence,
    root_written=times,
    trials_written=times,
    state_written=times,
    tuner_written=times,
    committed_at=times,
    restore=st.none() | st.sampled_from([10, 300]).map(restore),
    driver=st.none() | st.booleans().map(lambda runs: DriverStatus(is_running=runs, found="a job")),
    now=st.just(NOW),
)


@given(states, findings)
def test_only_evidence_that_counted_indicates_something(some, seen):
    health, _, counted = judge(some, seen, stale_after=HALF_HOUR)
    spoken = set(counted.values())
    match health:
        case Health.RUNNING:
            assert "alive" in spoken
            assert spoken <= {"alive", "unfinished"}
        case Health.INTERRUPTED:
            assert spoken == {"dead", "unfinished"}
        case _:
            assert counted[EvidenceKind.TRIALS] == "ended"
            assert spoken <= {"ended", "dead"}
