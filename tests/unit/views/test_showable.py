"""Whatever a value holds, it becomes strict JSON whose texts can be shown as they are."""

import json
import math

import pytest

from airflow_tune_restore.views.showable import finite, showable
from tests.support.planted import LONG, PLANTS, check_sent


@pytest.mark.parametrize("value", list(PLANTS.values()), ids=list(PLANTS))
def test_every_plant_becomes_strict_json_without_escapes(value):
    shown = showable({"here": value, LONG: [value, (value,)]})
    check_sent(shown)
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_numbers_that_json_lacks_are_none_and_all_others_stay():
    assert showable([math.nan, math.inf, -math.inf, 0.5, 3, True, None]) == [
        None, None, None, 0.5, 3, True, None,
    ]  # fmt: skip
    assert showable(2**70) == str(2**70)


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", None, True, [1.0], 10**400])
def test_a_metric_is_a_number_or_none(value):
    assert finite(value) is None
    assert finite(0.5) == 0.5
    assert finite(3) == 3
    assert finite(10**300) == 1e300
