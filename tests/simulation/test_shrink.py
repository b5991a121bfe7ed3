"""The shrinker: what is left of a script still fails, in the same way."""

from dataclasses import replace

import pytest

from tests.simulation.campaign import explain, simulating
from tests.simulation.faults import Fault, FaultKind, Storm
from tests.simulation.night import (
    Command,
    Ended,
    Jump,
    Loss,
    Meddling,
    Night,
    Script,
    draw_script,
    simulate,
)
from tests.simulation.plants import PLANTS
from tests.simulation.shrink import kind_of, shrink
from tests.simulation.store import StoreKind
from tests.simulation.story import clock, describe, tell

SMALL = Script(
    seed=1,
    sweep="one",
)
LARGE = replace(
    SMALL,
    sweep="restarted",
    kind=StoreKind.S3,
    ttl_seconds=900.0,
    pace=0.2,
    start_seconds=10.0,
    clocks=(0.0, 30.0, 5 * 3600.0, 0.0),
    asks=True,
    max_attempts=4,
    nights=(Night(0.0, (Meddling("twice", "samples", 31.5),)), Night(7200.0)),
    faults=(Fault(FaultKind.SLOW, "plan", 3, seconds=17.5), Fault(FaultKind.REPEATED, "trial", 2)),
    storms=(Storm(5000.0, 20.0, 0.3),),
    commands=(Command("release", 3000.0),),
    losses=(Loss(1, 6000.0),),
    jumps=(Jump(2, 100.0, 3600.0),),
)


@pytest.fixture
def late_seeds():
    """Every world fails while this mistake is in the code."""
    with simulating(), PLANTS["plan before seeds"].planted():
        yield


def test_everything_is_left_out_that_does_not_matter(late_seeds):
    smallest = shrink(simulate(LARGE))
    assert smallest.script == SMALL
    assert kind_of(smallest.failure) == "I3"


def test_a_failure_is_explained_by_the_smallest_world_that_fails_like_it(late_seeds):
    told = explain(7, failure := simulate(draw_script(7)).failure)
    assert told.startswith(f"World 7 fails: {failure}\nMade smaller")
    assert told.count("InvariantBroken: I3") == 2  # at the top, and at the end of the story


def test_a_failure_that_does_not_come_again_is_told_whole():
    with simulating():
        told = explain(7, "AssertionError: \nTraceback (most recent call last):\n  File …\n")
    assert "World 7 fails: AssertionError: \nTraceback (most recent call last):\n  File …" in told
    assert "Simulated again, it broke no invariant" in told


def test_it_ends_after_so_many_simulations(late_seeds):
    large = simulate(LARGE)
    assert shrink(large, most=0) is large


def test_another_failure_is_not_taken(late_seeds):
    other = replace(simulate(LARGE), failure="EndlessError: made up")
    assert shrink(other, most=20) is other


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("InvariantBroken: I3: leases ['00000001'] were never released", "I3"),
        ("EndlessError: it has not ended", "EndlessError"),
        ("", ""),
    ],
)
def test_the_kind_of_a_failure(failure, kind):
    assert kind_of(failure) == kind


def test_a_script_is_code():
    assert eval(repr(LARGE)) == LARGE
    assert "storms" not in repr(SMALL)


def test_a_script_in_words_has_all_that_is_done():
    words = "\n".join(describe(Ended(LARGE)))
    for part in ("slow", "twice", "30%", "release", "worker-1 is lost", "jumps", "samples"):
        assert part in words


def test_a_story_names_what_did_not_happen():
    script = replace(
        SMALL,
        nights=(Night(0.0, (Meddling("twice", "plan", 1.0), Meddling("clear", "samples", 31.5))),),
        faults=(Fault(FaultKind.SLOW, "plan", 1), Fault(FaultKind.SLOW, "plan", 1000)),
    )
    with simulating():
        lines = tell(script).splitlines()
    missing = [line for line in lines if "this did not happen" in line]
    assert missing == [
        "Night 1 starts at 0:00:00.000: plan is started twice, the second time 1 s after the first; "
        "samples is cleared after 32 s (this did not happen).",
        "Fault at request 1000 of plan: the request is slow (this did not happen).",
    ]


def test_a_story_ends_with_its_world():
    with simulating():
        lines = tell(SMALL).splitlines()
    assert lines[-1] == "All invariants hold."
    assert "killed" not in lines[-3]


def test_a_story_ends_with_what_was_broken(late_seeds):
    lines = tell(SMALL).splitlines()
    assert lines[-1].startswith("InvariantBroken: I3: .tune_restore/airflow-night-1/plan.json")
    assert any("WRITES .tune_restore/lease/00000001.claim.json" in line for line in lines)
    assert not any(" get " in line for line in lines)
    assert any(" get " in line for line in tell(SMALL, everything=True).splitlines())


def test_times_are_hours_minutes_seconds():
    assert clock(93784.0625) == "26:03:04.062"
