"""Two experiments that have much at once; those that are drawn: slow/test_more_generated.py."""

import json

from tests.support.ray.generated_recipes import RICH
from tests.support.ray.generated_restores import find_differences


def test_a_generated_experiment_ends_as_tuner_restore_ends_it(hosts, tmp_path):
    found = find_differences(hosts, tmp_path, 0, derandomize=True, explicit=RICH)
    assert not found, json.dumps(found, indent=1, default=str)
