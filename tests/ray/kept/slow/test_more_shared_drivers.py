"""More kinds of trials that end on one driver as with `Tuner.restore`."""

import pytest

from airflow_tune_restore.protocol.request import EXIT_FINISHED
from tests.support.ray.compared import RESUMED, Case
from tests.support.ray.sharing import Sharing, assert_same_end

CASES = [
    Case("fail again", "errored", RESUMED, healed=False),
    Case("retried, and fail again", "retries", RESUMED, healed=False),
    Case("with few checkpoints kept", "kept", RESUMED),
    Case("with few checkpoints made", "sparse", RESUMED),
    Case("class", "class", RESUMED),
    Case("registered", "registered", RESUMED),
    Case("with parameters", "with_parameters", RESUMED),
    Case("with resources", "with_resources", RESUMED),
    Case("trainer", "trainer", RESUMED),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_kind_ends_as_with_tuner_restore(hosts, copied, tmp_path, case):
    assert_same_end(hosts, copied, tmp_path, case)


def test_a_driver_at_an_empty_desk_ends_after_a_while(hosts, copied):
    sharing = Sharing(copied("two_errored"), "two_errored", hosts=hosts)
    ran = sharing.run()
    assert (ran.code, ran.outcome.result) == (EXIT_FINISHED, "finished"), ran.output
    assert not any(map(sharing.has_begun, sharing.trial_ids))
