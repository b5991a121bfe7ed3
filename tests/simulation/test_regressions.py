"""Scripts that failed once, made smaller. The message of a failing campaign has its script as code."""

import pytest

from tests.simulation.campaign import simulating
from tests.simulation.faults import Fault, FaultKind
from tests.simulation.night import Command, Meddling, Night, Script, simulate
from tests.simulation.store import StoreKind
from tests.simulation.story import tell

SCRIPTS = {
    "a seed that is written late by a second plan does not end the restore": Script(
        seed=372,
        sweep="small",
        kind=StoreKind.GCS,
        ttl_seconds=60.0,
        pace=0.02,
        tail=0.0,
        start_seconds=0.0,
        clocks=(0.0, 0.0, 0.0, 0.0),
        asks=False,
        max_attempts=None,
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "plan", 12.0),)),),
        faults=(Fault(FaultKind.LATE, "plan", 3, "put", "*/seed.json", 7.0),),
    ),
    "an undo whose first delete loses its answer is finished by the next night": Script(
        seed=127,
        sweep="whole-broken",
        kind=StoreKind.GCS,
        ttl_seconds=60.0,
        pace=0.02,
        tail=0.0,
        start_seconds=0.0,
        clocks=(0.0, 0.0, 0.0, 0.0),
        asks=False,
        max_attempts=None,
        nights=(Night(starts=0.0),),
        faults=(Fault(FaultKind.ANSWER_LOST, "undo", 1, "delete"),),
        commands=(Command("undo", 35.0),),
    ),
    "a claim made while the lease is listed is not passed over": Script(
        seed=0,
        sweep="slow-whole",
        kind=StoreKind.GCS,
        ttl_seconds=60.0,
        pace=0.02,
        tail=0.0,
        start_seconds=0.0,
        clocks=(0.0, 0.0, 0.0, 0.0),
        asks=False,
        max_attempts=None,
        nights=(Night(starts=0.0), Night(starts=1.0)),
        faults=(Fault(FaultKind.SLOW, "plan", 5, "list", ".tune_restore/lease", 30.0),),
    ),
    "a second try of plan that fails leaves the lease to the first": Script(
        seed=1,
        sweep="small",
        kind=StoreKind.GCS,
        ttl_seconds=60.0,
        pace=0.02,
        tail=0.0,
        start_seconds=0.0,
        clocks=(0.0, 0.0, 0.0, 0.0),
        asks=False,
        max_attempts=None,
        nights=(Night(starts=0.0, meddlings=(Meddling("twice", "plan", 2.0),)),),
        faults=(Fault(FaultKind.REFUSED, "plan", 53),),
    ),
}
"""By what holds now."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_world_that_failed_once_breaks_no_invariant(name):
    script = SCRIPTS[name]
    with simulating():
        if simulate(script).failure:
            pytest.fail(tell(script), pytrace=False)
