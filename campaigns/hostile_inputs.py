"""Hostile bytes: real files mutated, pickles that would execute or explode, JSON that does."""

import json
import math
import pickle
import random
import re
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from tests.support import GOLDEN

EXPERIMENTS = sorted(GOLDEN.glob("ray-*/killed"))

TEXTS = (
    "", ".", "..", "../..", "/etc/passwd", "a/b", "a\\b", "C:\\x", "~", "*", "?", "%2e%2e%2f", "%00",
    "line\nbreak", "carriage\rreturn", "nul\0", "tab\t", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07",
    "\x9b31m", "[red]markup[/red]", "[link=http://x]y[/link]", "[/]", "::group::folded", "::endgroup::",
    "<script>alert(1)</script>", "{{ 7*7 }}", "${IFS}", "$(id)", "`id`", "'; drop table x;--", "%s%n",
    "\ud800", "\udcff", "\U0010ffff", "\u202eevil", "\u2028", "\u200b", "\ufeff", "é", "e\u0301",
    "x" * 5000, "é" * 3000, "-rf", "--help", ".tune_restore", "tuner.pkl", "NaN", "Infinity", "null",
    "1e999", "²", "٣", "\U0001d7d9", "00000001", "TERMINATED", "ERROR", "RUNNING", "checkpoint_000001",
    "checkpoint_" + "9" * 5000, "experiment_state-2026-01-01_00-00-00.json", "airflow_tune_restore",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, -(10**4000), 1e308, -1e308, 5e-324,
    -0.0, math.nan, math.inf, -math.inf, 253402300800, -62135596801, 1e15,
)  # fmt: skip
TOKENS = (
    b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"9" * 5000, b'"\\ud800"', b'"\xff\xfe"',
    b"\x00", b"[" * 2000, b"{" * 2000, b'{"a":' * 500, b"0" * 100, b"1E+400", b"\xef\xbb\xbf",
    b'"\\u0000"',
    b", \"runner_data\": ", b'{"trial_data": ', b"true", b"null", b"[]", b"{}", b'""', b"-", b"\\",
)  # fmt: skip


@cache
def genuine() -> dict[str, tuple[bytes, ...]]:
    """Return the real files, by kind."""
    patterns = {
        "state": "experiment_state-*.json",
        "tuner": "tuner.pkl",
        "searcher": "basic-variant-state-*",
        "result": "*/result.json",
        "error": "*/error.txt",
        "pickle": "**/*.pkl",
    }
    found = {
        kind: tuple(
            path.read_bytes() for root in EXPERIMENTS for path in sorted(root.glob(pattern))
        )
        for kind, pattern in patterns.items()
    }
    return {kind: tuple(body for body in bodies if body) for kind, bodies in found.items()}


def hostile_json(rng: random.Random, body: bytes) -> bytes:
    """Return a variant of a JSON document of ours or Ray's."""
    return rng.choices((mutate_tree, mutate_bytes, json_bomb), (6, 4, 1))[0](rng, body)


def hostile_pickle(rng: random.Random, body: bytes) -> bytes:
    """Return a pickle that nobody honest wrote."""
    return rng.choices((mutate_bytes, pickle_program, pickle_bomb), (5, 4, 2))[0](rng, body)


def mutate_bytes(rng: random.Random, body: bytes) -> bytes:
    """Flip, splice, cut, double and overwrite."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        body = rng.choice(_BYTE_MUTATIONS)(rng, body)
    return body[: 4 * 1024 * 1024]


def _flip(rng: random.Random, body: bytes) -> bytes:
    if not body:
        return body
    made = bytearray(body)
    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _overwrite(rng: random.Random, body: bytes) -> bytes:
    start, end = _span(rng, body)
    return body[:start] + rng.randbytes(min(end - start, 64)) + body[end:]


def _cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _remove(rng: random.Random, body: bytes) -> bytes:
    start, end = _span(rng, body)
    return body[:start] + body[end:]


def _double(rng: random.Random, body: bytes) -> bytes:
    start, end = _span(rng, body)
    return body[:end] + body[start:end] * rng.choice((1, 1, 3, 50)) + body[end:]


def _splice(rng: random.Random, body: bytes) -> bytes:
    other = rng.choice(rng.choice([bodies for bodies in genuine().values() if bodies]))
    (start, end), at = _span(rng, other), rng.randrange(len(body) + 1)
    return body[:at] + other[start:end] + body[at:]


def _insert(rng: random.Random, body: bytes) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice(TOKENS) + body[at:]


def _replace_number(rng: random.Random, body: bytes) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", body[:100_000]))
    if not found:
        return body
    at = rng.choice(found)
    return body[: at.start()] + rng.choice(TOKENS) + body[at.end() :]


_BYTE_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip, _flip, _overwrite, _cut, _remove, _double, _splice, _insert, _replace_number,
)  # fmt: skip


def _span(rng: random.Random, body: bytes) -> tuple[int, int]:
    start = rng.randrange(len(body) + 1)
    return start, min(len(body), start + rng.choice((1, 2, 8, 64, 1000)))


def mutate_tree(rng: random.Random, body: bytes) -> bytes:
    """Change values of a JSON document where they stand, also inside JSON strings and hex pickles."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        document = _mutate_value(rng, document)
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return body


def _mutate_value(rng: random.Random, value: Any, depth: int = 0) -> Any:
    stop = rng.random() < 0.15 + 0.05 * depth  # noqa: S311
    if isinstance(value, dict) and value and not stop:
        name = rng.choice(list(value))
        return _mutate_member(rng, value, name, depth)
    if isinstance(value, list) and value and not stop:
        return _mutate_list(rng, value, depth)
    if isinstance(value, str) and len(value) > 1 and not (stop and depth > 4):
        inner = _mutate_inner(rng, value, depth)
        if inner is not None:
            return inner
    return hostile_value(rng, value)


def _mutate_member(rng: random.Random, value: dict[str, Any], name: str, depth: int) -> Any:
    roll = rng.random()
    made = dict(value)
    if roll < 0.08:
        del made[name]
    elif roll < 0.12:
        made[rng.choice(TEXTS)] = made.pop(name)
    elif roll < 0.16:
        made.update((str(number), number) for number in range(rng.choice((3, 2000))))
    else:
        made[name] = _mutate_value(rng, made[name], depth + 1)
    return made


def _mutate_list(rng: random.Random, value: list[Any], depth: int) -> Any:
    made = list(value)
    at = rng.randrange(len(made))
    match rng.randrange(8):
        case 0:
            del made[at]
        case 1:
            made.insert(at, made[rng.randrange(len(made))])
        case 2:
            rng.shuffle(made)
        case 3:
            made = made * rng.choice((2, 20))
        case _:
            made[at] = _mutate_value(rng, made[at], depth + 1)
    return made


def _mutate_inner(rng: random.Random, text: str, depth: int) -> str | None:
    """Mutate JSON in a string, or the pickle that a string of hex digits is."""
    if text[0] in "{[":
        try:
            return json.dumps(_mutate_value(rng, json.loads(text), depth + 1))
        except (ValueError, RecursionError):
            return None
    if len(text) > 40 and re.fullmatch(r"(?:[0-9a-f]{2})+", text):
        return hostile_pickle(rng, bytes.fromhex(text)).hex()
    return None


def hostile_value(rng: random.Random, value: Any = None) -> Any:
    """Return something of another type, or absurd of its own."""
    match rng.randrange(7):
        case 0 | 1:
            return rng.choice(TEXTS)
        case 2 | 3:
            return rng.choice(NUMBERS)
        case 4:
            return rng.choice(
                (None, True, False, [], {}, [[]], {"": {}}, [value], {"_type": value})
            )
        case 5:
            deep: Any = value
            for _ in range(rng.choice((5, 90, 300, 900))):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            return deep
        case _:
            return {"_type": "CLOUDPICKLE_FALLBACK", "value": pickle_bomb(rng, b"").hex()}


def json_bomb(rng: random.Random, body: bytes) -> bytes:
    """Return JSON that nests, expands or lies."""
    match rng.randrange(8):
        case 0:
            return rng.choice((b"[", b'{"a":', b'[{"a":')) * rng.choice((990, 5000, 100_000))
        case 1:
            depth = rng.choice((990, 5000, 50_000))
            return b"[" * depth + b"]" * depth
        case 2:  # each layer is a string that holds the next, quotes doubled every time
            text = "ha" * 50
            for _ in range(rng.choice((4, 12, 15))):
                text = json.dumps(text)
            return text[: 4 * 1024 * 1024].encode()
        case 3:
            return json.dumps({str(n): n for n in range(rng.choice((1000, 50_000)))}).encode()
        case 4:  # one key, again and again
            return b"{" + b", ".join([b'"trial_data": []'] * 5000) + b"}"
        case 5:
            return b'{"trial_data": [' + b", ".join([b'["{}", "{}"]'] * 2000) + b"]}"
        case 6:
            return rng.choice(TOKENS) + body + rng.choice(TOKENS)
        case _:
            return rng.choice((b"", b"\x00" * 4096, b"\xff\xfe" + body[:500], rng.randbytes(300)))


class _Command:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("echo executed; touch executed",)


_TARGETS = (
    b"os\nsystem\n", b"posix\nsystem\n", b"builtins\neval\n", b"builtins\nexec\n", b"subprocess\nPopen\n",
    b"builtins\n__import__\n", b"importlib\nimport_module\n", b"socket\ncreate_connection\n",
    b"copyreg\n_reconstructor\n", b"builtins\ngetattr\n", b"pickle\nloads\n", b"builtins\nopen\n",
    b"airflow_tune_restore.protocol.pickle_reader\nread_pickle\n", b"builtins\nbytearray\n",
)  # fmt: skip
_OPCODES = (
    b"(", b".", b"0", b"1", b"2", b"F1e999\n", b"I9\n", b"I01\n", b"J\xff\xff\xff\x7f", b"K\x01",
    b"L9L\n",
    b"M\xff\xff", b"N", b"P1\n", b"Q", b"R", b"S'a'\n", b"T\x02\x00\x00\x00ab", b"U\x01a", b"Va\n",
    b"X\x01\x00\x00\x00a", b"a", b"b", b"cos\nsystem\n", b"d", b"}", b"e", b"g0\n", b"h\x00",
    b"ios\nsystem\n", b"j\x00\x00\x00\x00", b"l", b"]", b"o", b"p0\n", b"q\x00", b"r\xff\xff\xff\x7f",
    b"s", b"t", b")", b"u", b"G\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\x80\x05", b"\x81",
    b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89",
    b"\x8a\x01\x7f", b"\x8b\x01\x00\x00\x00\x7f", b"B\x01\x00\x00\x00a", b"C\x01a", b"\x8c\x01a",
    b"\x8d\x01\x00\x00\x00\x00\x00\x00\x00a", b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a", b"\x8f",
    b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x95\x05\x00\x00\x00\x00\x00\x00\x00",
    b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a", b"\x97", b"\x98",
)  # fmt: skip
_NAMES = (
    "_latest_checkpoint_result", "checkpoint", "path", "metrics", "training_iteration", "_bundles",
    "_tune_config", "scheduler", "search_alg", "searcher", "metric", "mode", "_run_config",
    "failure_config", "fail_fast", "__trainable_name", "__flattened_param_space_keys",
    "_total_samples", "_finished", "total_samples", "finished",
)  # fmt: skip


def pickle_program(rng: random.Random, _body: bytes) -> bytes:
    """Return random opcodes, with the names that our readers look for among them."""
    parts = [b"\x80\x05"]
    for _ in range(rng.choice((3, 10, 40, 300))):
        roll = rng.random()
        if roll < 0.1:
            parts.append(b"c" + rng.choice(_TARGETS))
        elif roll < 0.25:
            name = rng.choice((*_NAMES, *TEXTS[:20])).encode("utf-8", "surrogatepass")
            parts.append(b"X" + struct.pack("<I", len(name)) + name)
        else:
            parts.append(rng.choice(_OPCODES))
    parts.append(b".")
    return b"".join(parts)


def pickle_bomb(rng: random.Random, _body: bytes) -> bytes:
    """Return a pickle that executes, explodes, nests or lies."""
    return rng.choice(_bombs())


@cache
def _bombs() -> tuple[bytes, ...]:
    system = b"cos\nsystem\n"
    argument = b"X\x04\x00\x00\x00true"
    lies = [
        code + struct.pack(form, length) + b"x."
        for code, form in ((b"X", "<I"), (b"B", "<I"), (b"T", "<i"), (b"\x8d", "<Q"), (b"\x8e", "<Q"),
                           (b"\x96", "<Q"), (b"\x8b", "<i"), (b"\x95", "<Q"))
        for length in {"<Q": (2, 2**31 - 1, 2**62), "<i": (2, 2**31 - 1, -1)}.get(form, (2, 2**31 - 1))
    ]  # fmt: skip
    doubled = b")" + b"2\x86" * 60  # a tuple of itself twice, sixty times: 2**60 leaves
    keys = _named("__flattened_param_space_keys", b"]" + doubled + b"a")
    return (
        *(pickle.dumps({"x": _Command()}, protocol) for protocol in range(6)),
        system + b"(" + argument + b"tR.",
        b"(" + argument + b"ios\nsystem\n.",
        b"(" + system + argument + b"o.",
        system + argument + b"\x85\x81.",
        b"\x80\x04" + system + argument + b"\x85}\x92.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + argument + b"\x85R.",
        b"\x80\x02\x82\x01" + argument + b"\x85R.",
        b"\x80\x02\x84\x01\x00\x00\x00.",
        b"P../../x\n.", b"\x80\x02K\x01Q.", b"\x80\x05\x97.", b"\x80\x05\x97\x98.",
        b"cairflow_tune_restore.protocol.pickle_reader\nInstance\n}(X\x04\x00\x00\x00argsK\x01ub.",
        b"cbuiltins\nobject\n)\x81}X\x09\x00\x00\x00__class__cos\nsystem\nsb.",
        *lies,
        b"\x80\x05Nr\xff\xff\xff\x7f.", b"\x80\x05Nr\xff\xff\xff\xff.", b"Np99999999999999999999\n.",
        b"\x80\x05" + b"(" * 150_000 + b".",
        b"\x80\x05)" + b"\x85" * 150_000 + b".",
        b"\x80\x05)" + b"\x85" * 150_000 + b"\x94}h\x00K\x01s.",
        b"\x80\x05" + doubled + b"\x94}h\x00K\x01s.",
        b"\x80\x05" + doubled + b".",
        b"\x80\x05" + keys,
        b"\x80\x05" + _named("_bundles", _many_bundles()),
        b"\x80\x05" + _named("_total_samples", b"\x8a\x40" + b"\x7f" * 64),
        b"\x80\x05" + _named("_total_samples", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00"),
        b"\x80\x05" + _named("__trainable_name", b"\x8d" + struct.pack("<Q", 3) + b"\xed\xa0\x80"),
        b"\x80\x05]\x94h\x00a.",  # a list that holds itself
        b"\x80\x05}\x94X\x08\x00\x00\x00searcherh\x00s.",
        b"\x80\x05" + b"X\x00\x00\x10\x00" + b"x" * (1024 * 1024) + b"\x94" + b"h\x00" * 50_000 + b".",
        b"L" + b"9" * 4000 + b"L\n.", b"L" + b"9" * 100_000 + b"L\n.", b"I" + b"9" * 5000 + b"\n.",
        b"\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
        b"F" + b"9" * 100_000 + b"\n.", b"Fnan\n.", b"S'" + b"\\x41" * 10_000 + b"'\n.",
        b"V" + b"\\U0010ffff" * 1000 + b"\n.", b"V\\ud800\n.", b"V\\u12\n.", b"S'\\x\n.",
    )  # fmt: skip


def _text(name: str) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode()


def _named(name: str, value: bytes) -> bytes:
    return b"}" + _text(name) + value + b"s."


def _many_bundles() -> bytes:
    """Many references to one huge bundle: what is small in the file is a day's work to add up."""
    bundle = b"}(" + b"".join(_text("CPU") + b"K\x01" for _ in range(20_000)) + b"u\x94"
    return b"](" + bundle + b"h\x00" * 100_000 + b"e"
