"""What a pickle says is read without doing any of it, and hostile ones end in an error, not in a hang."""

import collections
import contextlib
import copyreg
import os
import pickle
import pickletools
import struct
import sys
from traceback import format_exception

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_tune_restore.protocol.pickle_reader import (
    Global,
    Instance,
    SymbolicError,
    attribute,
    read_pickle,
)
from tests.support.experiments.built import KILLED

CALLS_PER_BYTE = 20
"""Of a reader that looks at every opcode once, with room for a few helpers more."""

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Thing:
    def __init__(self, **state):
        self.__dict__.update(state)


def plain(value):
    """Turn mappings back into dicts."""
    if hasattr(value, "pairs"):
        return {key: plain(item) for key, item in value.pairs}
    return [plain(item) for item in value] if isinstance(value, list) else value


@given(value=values, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    assert plain(read_pickle(pickle.dumps(value, protocol))) == value


NUMBER = "71829364"
SECRETS = (
    f"{NUMBER}secret\n",
    NUMBER,
    f"'{NUMBER}\\x",
    f"-{NUMBER}",
    f"{NUMBER}\n",
    f"{NUMBER}\n.",
)


@pytest.mark.parametrize("opcode", [*(op.code for op in pickletools.opcodes), "#"])
def test_no_error_quotes_the_file(opcode):
    """A link may lead from a pickle's name to what its maker may not read."""
    errors = []
    for secret in SECRETS:
        try:
            read_pickle((opcode + secret).encode("latin-1"))
        except SymbolicError as error:
            errors.append(error)
    shown = "".join(line for error in errors for line in format_exception(error))
    assert NUMBER not in shown


@given(state=st.dictionaries(st.text(min_size=1), values, min_size=1), protocol=st.integers(0, 5))
def test_the_state_of_an_object_is_found_without_its_class(state, protocol):
    read = read_pickle(pickle.dumps(Thing(**state), protocol))
    for name, value in state.items():
        assert plain(attribute(read, name)) == value


def test_collections_that_pickle_builds_by_calls_are_followed():
    read = read_pickle(pickle.dumps(collections.OrderedDict(a=1)))
    assert isinstance(read, Instance)
    assert read.class_name == "OrderedDict"
    assert read.items == [("a", 1)]


class Bomb:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(tmp_path, protocol):
    canary = tmp_path / "canary"
    read = read_pickle(pickle.dumps({"x": Bomb(f"touch {canary}")}, protocol))
    assert isinstance(attribute(read, "x"), Instance)
    assert not canary.exists()


def test_extension_codes_are_refused():
    copyreg.add_extension("os", "system", 0x7F)
    try:
        body = b"\x80\x02\x82\x7f" + b"X\x04\x00\x00\x00true\x85R."
        with pytest.raises(SymbolicError, match="outside"):
            read_pickle(body)
    finally:
        copyreg.remove_extension("os", "system", 0x7F)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a pickle", id="text"),
        pytest.param(b"\x80\x05.", id="stop on an empty stack"),
        pytest.param(b"\x80\x05(.", id="mark as the result"),
        pytest.param(b"\x80\x05h\x05.", id="memo never written"),
        pytest.param(b"\x80\x05Nr\xff\xff\xff\xff.", id="huge memo index"),
        pytest.param(b"\x80\x05P1\n.", id="persistent id"),
        pytest.param(b"\x80\x05\x97.", id="out-of-band buffer"),
        pytest.param(
            b"\x80\x05\x8d" + struct.pack("<Q", 2**62) + b"x.", id="text that lies about length"
        ),
        pytest.param(
            b"\x80\x05\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".", id="huge int"
        ),
        pytest.param(b"I" + b"9" * 100_000 + b"\n.", id="huge decimal"),
        pytest.param(b"cos\nsystem\n}(X\x01\x00\x00\x00aK\x01ub.", id="BUILD on a class"),
        pytest.param(b"\x80\x05" + b"]" * 250_000 + b".", id="too many opcodes"),
        pytest.param(b"\x80\x05}" + b"(K\x01u.", id="key without a value"),
        pytest.param(pickle.dumps(list(range(1000)))[:-40], id="truncated"),
        pytest.param(b"\x80\x05" + b"x" * (17 * 1024 * 1024), id="too large"),
    ],
)
def test_hostile_or_broken_bytes_are_refused_with_a_few_steps_for_each_of_them(body):
    with at_most(CALLS_PER_BYTE * len(body) + 100), pytest.raises(SymbolicError):
        read_pickle(body)


@contextlib.contextmanager
def at_most(calls: int):
    """Allow so many calls of functions, of Python or C: one more is an error."""
    left = calls

    def count(_frame, event, _argument):
        nonlocal left
        left -= event in ("call", "c_call")
        if left < 0:
            raise AssertionError(f"more than {calls} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_a_hash_bomb_is_only_looked_at():
    deep = b"".join([b"\x80\x05)", b"\x85" * 50_000, b"}(", b"h", b"."])
    with pytest.raises(SymbolicError):
        read_pickle(deep)
    nested = b"\x80\x05}" + b")" + b"\x86".join([b"\x32" for _ in range(40)]) + b"K\x01s."
    with contextlib.suppress(SymbolicError):
        read_pickle(nested)


@settings(max_examples=400)
@given(data=st.data())
def test_mutants_of_a_real_file_are_read_or_refused(data):
    body = bytearray((KILLED / "tuner.pkl").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SymbolicError):
        read_pickle(bytes(body))


def test_every_opcode_of_python_is_either_followed_or_refused():
    """A new protocol must not slip through as something we ignore."""
    from airflow_tune_restore.protocol import pickle_reader

    known = {*pickle_reader._OPERATIONS, "STOP"}
    refused = {op.name for op in pickletools.opcodes} - known
    assert refused == {
        "PERSID",
        "BINPERSID",
        "EXT1",
        "EXT2",
        "EXT4",
        "NEXT_BUFFER",
        "READONLY_BUFFER",
    }


def test_a_real_tuner_file_gives_its_facts():
    read = read_pickle((KILLED / "tuner.pkl").read_bytes())
    assert attribute(read, "__trainable_name") == "train"
    assert attribute(read, "_tune_config", "metric") == "score"
    assert isinstance(attribute(read, "_tune_config"), Instance)
    assert isinstance(attribute(read, "_tune_config").maker, Global)
