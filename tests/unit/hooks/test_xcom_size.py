"""Lists that are too large for an XCom: packed, unpacked, cut."""

import base64
import json
import zlib

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks import xcom_size
from airflow_tune_restore.hooks.xcom_size import first_fitting, fits, most_fitting, pack, unpack


@pytest.mark.parametrize("items", [[], ["a", "b"], [{"experiment": "/x/ü\u2028", "n": None}]])
def test_a_packed_list_is_the_same_list_again(items):
    packed = pack(items)
    assert json.loads(json.dumps(packed)) == packed
    assert unpack(packed) == items


@pytest.mark.parametrize("value", [None, "", "/x/a", ["/x/a"], {"experiment": "/x/a"}, 3])
def test_what_was_never_packed_stays_as_it_is(value):
    assert unpack(value) is value


def of_bytes(body: bytes) -> dict:
    return {"packed": base64.b64encode(body).decode()}


@pytest.mark.parametrize(
    "value",
    [
        {"packed": None},
        {"packed": "ü"},
        {"packed": "not base64"},
        of_bytes(b"not zlib"),
        of_bytes(zlib.compress(b"[1, 2]")[:-6]),
        of_bytes(zlib.compress(b"[1, 2")),
        of_bytes(zlib.compress(b'{"a": 1}')),
        of_bytes(zlib.compress(b"[" * 200_000)),
    ],
)
def test_a_broken_one_is_refused_in_words(value):
    with pytest.raises(InvalidInputError, match="A packed XCom is broken, or larger than"):
        unpack(value)


def test_a_small_xcom_that_would_fill_the_memory_is_refused(monkeypatch):
    bomb = pack(["x" * 100_000])
    assert len(json.dumps(bomb)) < 1000
    assert unpack(bomb)
    monkeypatch.setattr(xcom_size, "MAX_UNPACKED_BYTES", 50_000)
    with pytest.raises(InvalidInputError, match="larger than 50000 bytes"):
        unpack(bomb)


@pytest.mark.parametrize("limit", [3, 10, 99, 100, 101, 10_000])
def test_as_many_items_are_taken_as_fit(monkeypatch, limit):
    monkeypatch.setattr(xcom_size, "MAX_XCOM_BYTES", limit)
    items = [{"number": number} for number in range(50)]
    taken = first_fitting(items)
    assert fits(taken)
    assert taken == items or not fits(items[: len(taken) + 1])
    assert most_fitting(50, lambda count: items[:count]) == len(taken)
    with_more = first_fitting(items, beside=len(json.dumps({"more": 1, "items": []})))
    assert fits({"more": 1, "items": with_more}) or not with_more
