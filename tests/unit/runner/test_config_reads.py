"""A closed set of keys holds every key that the code reads, as a run of the code shows."""

import ast
import contextlib
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_tune_restore.runner.config_reads import find_reads

KEYS = st.sampled_from("abcdefgh")


class Recording(dict):
    """A config that records the keys it is asked for."""

    def __init__(self):
        super().__init__({key: {} for key in "abcdefgh"})
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().get(key, {})

    def __contains__(self, key):
        self.read.add(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)

    def pop(self, key, default=None):
        self.read.add(key)
        return super().pop(key, default)

    def setdefault(self, key, default=None):
        self.read.add(key)
        return super().setdefault(key, default)

    def __iter__(self):
        self.read |= set(self.keys())
        return super().__iter__()

    def items(self):
        self.read |= set(self.keys())
        return super().items()

    def copy(self):
        other = Recording()
        other.read = self.read
        return other


EXPRESSIONS = [
    "config[{k!r}]",
    "config.get({k!r})",
    "config.get({k!r}, config[{j!r}])",
    "config.get({k!r}, {e})",
    "config.pop({k!r}, None)",
    "config.setdefault({k!r}, {e})",
    "{k!r} in config",
    "{k!r} not in config",
    "config[{k!r}] if {e} else {f}",
    "f'{{config[\"{k}\"]}}'",
    "[config[{k!r}] for _ in range(1)]",
    "(lambda: config[{k!r}])()",
    "(lambda config: config[{k!r}])({{{k!r}: {e}}})",
    "(lambda c=config: c[{k!r}])()",
    "[{e}, {f}]",
    # escapes
    "read(config, {k!r})",
    "read(c=config, k={k!r})",
    "read(*[config, {k!r}])",
    "dict(**config).get({k!r})",
    "{{**config}}.get({k!r})",
    "[v for v in config]",
    "[v for _, v in config.items()]",
    "config[{k!r}.lower()]",
    "config['{k}'[:1]]",
    "(found := config)[{k!r}]",
    "config.copy()[{k!r}]",
    "getattr(config, 'get')({k!r})",
    "(config.get)({k!r})",
    "[config][0][{k!r}]",
    "(config if {e} else config)[{k!r}]",
    "(config or {{}})[{k!r}]",
    "locals()['config'][{k!r}]",
    "vars()['config'][{k!r}]",
    "eval('config')[{k!r}]",
    "config.__getitem__({k!r})",
    "f'{{config}}'",
]
STATEMENTS = [
    "x = {e}",
    "if {e}:\n    x = {f}",
    "for _ in range(2):\n    x = {e}",
    "def inner():\n    return {e}\nx = inner()",
    "def inner(config):\n    return {e}\nx = inner(config)",
    "class Inner:\n    x = {e}",
    "try:\n    x = {e}\nexcept KeyError:\n    x = {f}",
    "config[{k!r}] = {e}",
    "config[{k!r}], y = {e}, {f}",
    "assert not {e} or True",
    "match {e}:\n    case _:\n        x = {f}",
    "match config:\n    case {{{k!r}: found}}:\n        x = found",
    "c = config\nx = c[{k!r}]",
    "c: dict = config\nx = c[{k!r}]",
    "c = d = config\nx = d[{k!r}]",
    "c, d = config, 1\nx = c[{k!r}]",
    "for c in [config]:\n    x = c[{k!r}]",
    "with hold(config) as c:\n    x = c[{k!r}]",
    "config = {{{k!r}: {e}}}",
    "x = {e}\nx = {f}",
]


@st.composite
def expressions(draw, depth=2):
    form = draw(st.sampled_from(EXPRESSIONS))
    inner = expressions(depth=depth - 1) if depth else st.just("1")
    return f"({form.format(k=draw(KEYS), j=draw(KEYS), e=draw(inner), f=draw(inner))})"


@st.composite
def functions(draw):
    lines = []
    for form in draw(st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=4)):
        lines.append(form.format(k=draw(KEYS), e=draw(expressions()), f=draw(expressions())))
    return "def train(config):\n" + textwrap.indent("\n".join(lines), "    ")


class hold:  # noqa: N801
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        return None


SCOPE = {"read": lambda c, k: c[k], "hold": hold}


@given(functions())
@settings(max_examples=200, deadline=None)
def test_a_closed_set_never_misses_a_key_that_is_read(source):
    (function,) = ast.parse(source).body
    reads = find_reads(function, config="config")
    scope = dict(SCOPE)
    exec(source, scope)  # noqa: S102  it is generated above
    config = Recording()
    with contextlib.suppress(Exception):  # what it read until then counts
        scope["train"](config)
    if not reads.escapes and not reads.passed:
        assert config.read <= reads.keys, source


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        ("x = config['a'] + config.get('b', 1) + config.pop('c')", "abc"),
        ("if 'a' in config and 'b' not in config: config.setdefault('c', config['d'])", "abcd"),
        ("config['a'] = 1; del config['b']; config['c'] += 1", "abc"),
        ("print(f\"{config['a']}\", [config['b'] for _ in range(9)])", "ab"),
        ("model.eval(); torch.stack([1]); x = config['a']['nested']", "a"),
    ],
)
def test_what_is_read_by_name_is_a_closed_set(body, keys):
    (function,) = ast.parse(f"def train(config):\n    {body}").body
    reads = find_reads(function, config="config")
    assert (reads.keys, reads.escapes, reads.passed) == (set(keys), False, set())


def reads_of_method(body):
    (function,) = ast.parse(f"def step(self, config):\n    {body}").body
    return find_reads(function, config="config", instance="self", passes_to={"setup"})


@pytest.mark.parametrize(
    "body",
    [
        "self.lr = self.config['a'] + config['a']",
        "self.config = config; self.config.get('a')",
        "super().setup(config); super(Mine, self).setup(config, b=1); x = self.config['a']",
        "self.step(); self.setup(config); self.config['a']",
    ],
)
def test_a_class_reads_its_own_config(body):
    reads = reads_of_method(body)
    assert (reads.keys, reads.escapes, reads.passed) == ({"a"}, False, set())


@pytest.mark.parametrize(
    "body",
    [
        "helper(self)",
        "c = self.config",
        "self.other = config",
        "self.helper(config)",
        "Base.setup(self, config)",
        "self.get_config()['b']",
        "super().get_config()['b']",
        "vars(self)['config']",
        "self.__dict__['config']",
        "other.setup(config)",
        "lambda: self",
        "print(self.config)",
        "self.config |= {}; d = {**self.config}",
    ],
)
def test_a_class_that_passes_itself_or_its_config_on_may_read_any_key(body):
    reads = reads_of_method(body)
    assert reads.escapes or reads.passed


def test_a_config_that_is_bound_to_another_value_escapes():
    for body in ("config = {'a': 1}", "config |= {'a': 1}", "for config in []: pass"):
        (function,) = ast.parse(f"def train(config):\n    {body}").body
        assert find_reads(function, config="config").escapes
    assert reads_of_method("self.config = {'a': 1}").escapes


@pytest.mark.parametrize(
    ("body", "required"),
    [
        ("for _ in range(3): print(config['a'] + config.get('b', 1))", "a"),
        ("if flag: config['a']", ""),
        ("try: config['a']\n    except KeyError: pass", ""),
        ("config['a'] = 1", ""),
        ("(lambda: config['a'])()", ""),
    ],
)
def test_only_what_every_call_reads_is_required(body, required):
    (function,) = ast.parse(f"def train(config):\n    {body}").body
    assert find_reads(function, config="config").required == set(required)
