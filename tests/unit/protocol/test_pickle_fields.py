"""The short way to fields of a pickle finds what the full reader finds there, or is not taken."""

import contextlib
import json
import pickle
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_tune_restore.protocol import pickle_fields
from airflow_tune_restore.protocol.pickle_fields import PickleFields
from airflow_tune_restore.protocol.pickle_reader import SymbolicError, attribute, read_pickle
from tests.support import GOLDEN

LATEST = "_latest_checkpoint_result"
PATHS = (LATEST, "checkpoint", "path"), (LATEST, "metrics", "training_iteration")
BYTES = b"\x00\x01\x05\x11\x7f\x80\x94\xff.(KMJGNhujt)}]R\x85\x88\x8a\x8c\x93\x95"
"""Bytes to put in the place of others: small and large ones, and opcodes."""


def records():
    """Return a record of checkpoints per state file that real Rays wrote, and per length."""
    found = {}
    for state in sorted(GOLDEN.rglob("experiment_state-*.json")):
        for _, metadata in json.loads(state.read_text())["trial_data"]:
            record = json.loads(metadata).get("checkpoint_manager")
            text = record["value"] if isinstance(record, dict) else record
            if text:
                found.setdefault((state.parent, len(text)), bytes.fromhex(text))
    return list(dict.fromkeys(found.values()))


RECORDS = records()


def shown(read, body):
    """Return what is read as a text: what it reads has no equality, and may hold NaN."""
    try:
        return repr(read(body))
    except SymbolicError as error:
        return repr(error)


def in_full(body):
    whole = read_pickle(body)
    return [attribute(whole, *path) for path in PATHS]


@pytest.fixture
def learn(monkeypatch):
    """Return what makes a reader that knows the layout of a pickle, and a list of its full reads."""
    full = []

    def read(body):
        full.append(body)
        return read_pickle(body)

    monkeypatch.setattr(pickle_fields, "_LEARN_EVERY", 1)
    monkeypatch.setattr(pickle_fields, "_MOST_LAYOUTS", 1)
    monkeypatch.setattr(pickle_fields, "read_pickle", read)

    def learn(body):
        fields = PickleFields(*PATHS)
        with contextlib.suppress(SymbolicError):
            fields.read(body)
        full.clear()
        return fields, full

    return learn


def test_real_records_of_several_rays_are_read_as_in_full(learn):
    assert len(RECORDS) > 20
    for known in RECORDS:
        fields, _ = learn(known)
        for body in RECORDS:
            assert shown(fields.read, body) == shown(in_full, body)


@pytest.mark.parametrize("known", RECORDS[:: len(RECORDS) // 2])
def test_a_byte_more_less_or_other_never_changes_what_is_read(learn, known):
    fields, full = learn(known)
    chance = random.Random(1)
    taken = 0
    for at in range(len(known)):
        rest = known[at + 1 :]
        others = [bytes([byte]) for byte in chance.sample(BYTES, 2)]
        for put in [b"", known[at : at + 1] + others[0], *others]:
            body = known[:at] + put + rest
            full.clear()
            found = shown(fields.read, body)
            if not full:  # the short way
                taken += 1
                assert found == shown(in_full, body), (at, put)
    assert taken


NAMES = (LATEST, "checkpoint", "path", "metrics", "training_iteration", "a", "längs", "")
leaves = (
    st.sampled_from(NAMES) | st.integers(-(2**40), 2**140) | st.none() | st.booleans() | st.floats()
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=6,
)
latest = st.fixed_dictionaries(
    {},
    optional={
        "checkpoint": st.fixed_dictionaries({"path": leaves}) | trees,
        "metrics": st.fixed_dictionaries({"a": leaves, "training_iteration": leaves}) | trees,
    },
)
wholes = st.fixed_dictionaries({"a": leaves, LATEST: latest}) | trees


@given(known=wholes, other=wholes, protocol=st.integers(0, 5))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pickle_is_read_as_in_full_whatever_was_read_before(learn, known, other, protocol):
    fields, _ = learn(pickle.dumps(known, protocol))
    for whole in (other, known):
        body = pickle.dumps(whole, protocol)
        assert shown(fields.read, body) == shown(in_full, body)


def record(path, iteration, score):
    metrics = {"score": score, "training_iteration": iteration, "date": "2026"}
    return pickle.dumps({"kept": 1, LATEST: {"checkpoint": {"path": path}, "metrics": metrics}}, 5)


def test_records_that_differ_in_their_values_only_are_not_read_in_full(learn):
    fields, full = learn(record("/sweep/t_1/checkpoint_000001", 2, 0.5))
    path = "/other/sweep/trial_22222/checkpoint_000100"
    for iteration in (0, 255, 256, 70_000):
        assert fields.read(record(path, iteration, -3)) == [path, iteration]
    assert not full


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(record("/über/t/checkpoint_000001", 2, 0.5), id="a text that is not ASCII"),
        pytest.param(record("/t/" + "c" * 300, 2, 0.5), id="a long text"),
        pytest.param(record("/t/checkpoint_000001", 2.5, 0.5), id="not a whole iteration"),
        pytest.param(record("/t/checkpoint_000001", None, 0.5), id="no iteration"),
        pytest.param(record(("/t",), 2, 0.5), id="not a path"),
        pytest.param(record("/t/checkpoint_000001", 2, 0.5)[:-1], id="cut off"),
        pytest.param(record("/t/checkpoint_000001", 2, 0.5) + b".", id="more behind its end"),
    ],
)
def test_anything_else_is_read_in_full(learn, body):
    fields, full = learn(record("/t/checkpoint_000001", 2, 0.5))
    assert shown(fields.read, body) == shown(in_full, body)
    assert full == [body]


def test_a_value_that_is_also_a_key_is_no_value(learn):
    """The same text is one object to pickle: as a value first, and as a key by its number."""
    known, other = ({"a": name, LATEST: {"checkpoint": {name: "/t"}}} for name in ("path", "pith"))
    fields, _ = learn(pickle.dumps(known, 5))
    assert fields.read(pickle.dumps(known, 5)) == ["/t", None]
    assert fields.read(pickle.dumps(other, 5)) == [None, None]


def test_few_layouts_are_learned_and_none_of_few_pickles(monkeypatch):
    learned = []
    monkeypatch.setattr(pickle_fields, "_learn", lambda body, _: learned.append(body))
    fields = PickleFields(*PATHS)
    for number in range(5000):
        fields.read(record("/t", number, 0.5))
        assert learned or number < 63
    assert len(learned) == 16


@pytest.mark.parametrize(
    "body", [b"\x80\x05" + b"K\x01" * 2000 + b".", record("/t", 1, "x" * 9000)]
)
def test_a_large_pickle_is_not_learned(learn, body):
    fields, full = learn(body)
    fields.read(body)
    assert full == [body]
