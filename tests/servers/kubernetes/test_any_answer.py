"""No answer of an API server but a 404 for that very pod ends, deletes or fails one that runs."""

import itertools
import json
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_tune_restore.version_compat import AirflowFailException
from tests.support.kubernetes.api import CUT, NAMESPACE, Fault
from tests.support.kubernetes.stand_in import BOTH


def not_found(**details: str) -> str:
    """Return an API server's answer for something that does not exist."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}
    return json.dumps({**status, "message": "not found", "details": details, "code": 404})


WELL = json.dumps({"kind": "Status", "apiVersion": "v1", "status": "Success"})
OTHER_POD = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {"name": "other", "namespace": NAMESPACE},
    "spec": {"containers": [{"name": "base", "image": "i"}]},
    "status": {"phase": "Failed", "reason": "Evicted"},
}
BODIES = [
    None,  # the answer of an API server
    "",
    "<html><body>Welcome to the load balancer</body></html>",
    "404 page not found",
    "{",
    "[]",
    WELL,
    not_found(),
    not_found(kind="pods", name="other"),
    not_found(kind="nodes", name="node-1"),
    json.dumps(OTHER_POD),
    json.dumps({**OTHER_POD, "metadata": {}}),
    json.dumps({**OTHER_POD, "spec": {"containers": None}}),
]
STATUSES = [
    CUT,
    200,
    204,
    301,
    400,
    401,
    403,
    404,
    405,
    408,
    409,
    410,
    418,
    429,
    500,
    502,
    503,
    504,
]
FAULTS = st.builds(
    Fault, st.sampled_from(STATUSES), body=st.sampled_from(BODIES), after=st.booleans()
).filter(lambda fault: fault.body is not None or fault.status not in (200, 204, 301))


@pytest.fixture
def number():
    """Numbers the examples: each has an experiment of its own."""
    return itertools.count()


@BOTH
@settings(
    max_examples=40 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(faults=st.lists(FAULTS, min_size=1, max_size=8), calm=st.integers(1, 3))
def test_whatever_goes_wrong_with_any_request_the_pod_goes_on(
    new_trial, api, number, deferred, faults, calm
):
    api.recover()
    trial = new_trial(f"errored-{next(number)}")
    turns = [*faults, *[None] * calm]
    api.turns = itertools.cycle(turns)
    is_open = threading.Timer(0.5, trial.open)
    is_open.start()
    try:
        result = trial.restore(deferred=deferred)
    except AirflowFailException:
        # nothing runs where an API server calls the pod itself wrong: that answer is believed
        assert any(f.status == 400 and f.body is None for f in faults)
        assert not [p for p in api.created if "deletionTimestamp" in p["metadata"]]
        return
    finally:
        is_open.cancel()
        trial.open()
        api.turns = None
    assert (result["status"], result["attempt"]) == ("TERMINATED", 1)
    assert len(api.created) == 1
    assert trial.failures == ()
    said = [line for life in api.kubelet.pods.values() for _, line in life.said]
    assert said[-1] == "attempt 1 ends"  # it ended by itself
