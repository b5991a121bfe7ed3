"""More generated experiments than in ../test_generated.py.

pytest --all tests/ray/kept/slow/test_more_generated.py         a handful, the same every time
HYPOTHESIS_PROFILE=nightly pytest --all tests/ray/kept/slow/test_more_generated.py --hypothesis-seed=N
                                                                200
"""

import json
import os

from tests.support.ray.generated_restores import find_differences

IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "200" if IS_NIGHTLY else "4"))


def test_many_generated_experiments_end_as_tuner_restore_ends_them(hosts, tmp_path):
    found = find_differences(hosts, tmp_path, EXAMPLES, derandomize=not IS_NIGHTLY)
    assert not found, json.dumps(found, indent=1, default=str)
