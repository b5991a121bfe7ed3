"""Errors survive pickling (Airflow passes them between processes) and say what to do."""

import inspect
import pickle

import pytest

from airflow_tune_restore import exceptions

ALL = [
    kind
    for _, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, exceptions.TuneRestoreError)
]


def make(kind):
    if kind.__init__ is Exception.__init__:
        return kind("what happened, and what to do")
    named = list(inspect.signature(kind).parameters.values())
    return kind(*(1.5 if p.annotation is float else f"<{p.name}>" for p in named))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_after_pickling(kind):
    error = make(kind)
    again = pickle.loads(pickle.dumps(error))  # noqa: TID251
    assert str(again) == str(error)
    assert vars(again) == vars(error)


WITH_REASON = [
    kind for kind in ALL if vars(make(kind)).keys() & {"reason", "why", "final", "error"}
]


@pytest.mark.parametrize("kind", WITH_REASON, ids=lambda kind: kind.__name__)
def test_a_sentence_in_an_error_ends_once(kind):
    given = vars(make(kind))
    prose = dict.fromkeys(given.keys() & {"reason", "why", "final", "error"}, "It says so.")
    assert ".." not in str(kind(**{**given, **prose}))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_names_what_it_is_about(kind):
    error = make(kind)
    for value in vars(error).values():
        if isinstance(value, str):
            assert value in str(error)
