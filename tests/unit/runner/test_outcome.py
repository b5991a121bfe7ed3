"""What an attempt's record says of its trial."""

from types import SimpleNamespace

from airflow_tune_restore.runner.outcome import error_of, scalar_metrics


def trial(error=None, text=""):
    return SimpleNamespace(get_pickled_error=lambda: error, get_error=lambda: text)


def test_the_cause_inside_rays_error_is_named():
    wrapped = RuntimeError("ray::train() raised")
    wrapped.cause = ValueError("bad shape\nand more")
    assert error_of(trial(wrapped)) == ("ValueError", "bad shape")


def test_rays_own_errors_are_named_by_their_type():
    assert error_of(trial(MemoryError("no memory"))) == ("MemoryError", "no memory")


def test_an_error_without_a_pickle_is_the_last_line_of_its_text():
    assert error_of(trial(text="Traceback\n\nlost: it")) == ("Error", "lost: it")


def test_the_metric_comes_first_and_only_numbers_are_taken():
    result = {"a": 1, "loss": 0.5, "config": {"x": 1}, "name": "x", "pid": 7, "flag": True}
    assert list(scalar_metrics(result, "loss").items()) == [("loss", 0.5), ("a", 1), ("flag", True)]
