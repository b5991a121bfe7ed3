"""Which keys a trainable takes from its config, and where it is defined, behind wrappers."""

import functools

import pytest

from airflow_tune_restore.runner.trainable_code import read_code
from tests import trainables

tune = pytest.importorskip("ray.tune")


def plain(config):
    return config["a"], config.get("b")


def with_more(config, table):
    return config["a"], config["b"], table


def second(table, config):
    return config["a"], config["b"], table


def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


def decorated(function):
    def inner(config):
        config["b"]
        return function(config)

    return inner


@decorated
@wrapped
def twice(config):
    return config["a"]


def anything(config):
    return dict(config)


def resources(config):
    return config["b"]


class Base(tune.Trainable):
    def setup(self, config, table=None):
        self.b = config["b"]
        self.table = table

    @property
    def a(self):
        return self.config.get("a")


class Sub(Base):
    def step(self):
        return {"a": self.a}


class Leaking(Sub):
    def step(self):
        return anything(self.config)


class FromStart(Base):
    def __init__(self, config=None, **kwargs):
        super().__init__(config, **kwargs)
        self.c = self.config["c"]


tune.register_trainable("evidence_plain", plain)
tune.register_trainable("evidence_sub", Sub)

CLOSED = {
    "function": plain,
    "registered function": "evidence_plain",
    "registered class": "evidence_sub",
    "partial": functools.partial(with_more, table=1),
    "partial with positions": functools.partial(second, 1),
    "with_parameters": tune.with_parameters(with_more, table=1),
    "with_parameters of a wrapper": tune.with_parameters(decorated(wrapped(plain)), a=1),
    "with_resources": tune.with_resources(plain, {"cpu": 1}),
    "with_resources by config": tune.with_resources(
        tune.with_parameters(lambda config: config["a"]), resources
    ),
    "wrapped": wrapped(plain),
    "decorated twice": twice,
    "class": Sub,
    "class with_parameters": tune.with_parameters(Sub, table=1),
    "class with_resources": tune.with_resources(Sub, {"cpu": 1}),
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_keys_that_code_takes_are_found_behind_wrappers(name):
    code = read_code(CLOSED[name])
    assert code.keys is not None
    assert code.keys >= {"a", "b"}
    assert "no_module_names_this_key".upper() not in code.keys
    assert code.modules == {__name__}


def from_exec():
    scope = {}
    exec("def train(config): return config['a']", scope)  # noqa: S102
    return scope["train"]


class Callable:
    def __call__(self, config):
        return config["a"]


OPEN = {
    "passed on": anything,
    "wrapped": wrapped(anything),
    "with_parameters": tune.with_parameters(anything, b=1),
    "class that passes it on": Leaking,
    "resources": tune.with_resources(wrapped(plain), anything),
    "without source": from_exec(),
    "builtin": dict,
    "callable": Callable(),
    "partial of a class": functools.partial(dict),
    "reads no key": lambda config: 1,
    "tests.trainables": trainables.counting,
    "tests.trainables class": trainables.Counter,
}


@pytest.mark.parametrize("name", OPEN)
def test_code_that_cannot_be_followed_may_take_any_key(name):
    assert read_code(OPEN[name]).keys is None


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("function", __name__),
        ("registered class", __name__),
        ("with_parameters", __name__),
        ("with_resources by config", __name__),
        ("class with_parameters", __name__),
        ("class with_resources", __name__),
        ("decorated twice", ""),
    ],
)
def test_the_home_of_a_trainable_is_known_unless_a_wrapper_hides_it(name, home):
    assert read_code(CLOSED[name]).home == home


def test_a_class_that_overrides_init_is_followed():
    code = read_code(FromStart)
    assert code.keys is not None
    assert code.keys >= {"a", "b", "c"}


def test_the_example_sweep_takes_its_own_keys():
    from dags import example_sweep

    code = read_code(example_sweep.train)
    assert code.keys is not None
    assert code.keys >= {"fragile", "lr", "seconds"}


def test_an_algorithm_of_rllib_takes_any_key():
    algorithm = type("PPO", (Base,), {"__module__": "ray.rllib.algorithms.ppo"})
    assert read_code(algorithm).keys is None


def test_a_trainer_takes_any_key(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    assert read_code(trainables.make_trainer()).keys is None
