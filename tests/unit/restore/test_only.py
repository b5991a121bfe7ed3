"""`only=` and `--only`: how the selection is written, and which trials match it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.trial import TrialStatus
from airflow_tune_restore.protocol.failures import Cause
from airflow_tune_restore.restore.only import Only, Threshold

WORDS = st.text(st.characters(codec="utf-8", exclude_characters=",\n\r"), min_size=1).filter(
    lambda text: text == text.strip() and text != "None" and len(text.splitlines()) == 1
)
METRICS = st.builds(
    lambda name, operator, value: f"{name}{operator}{value!r}",
    st.sampled_from(["loss", "val/loss", "a b", "a=b", "x"]),
    st.sampled_from(["<", "<=", ">", ">="]),
    st.floats(allow_nan=False),
)
GIVEN = st.dictionaries(
    st.sampled_from(["trial", "status", "cause", "error", "metric", "experiment"]),
    st.none(),
    min_size=1,
).flatmap(
    lambda keys: st.fixed_dictionaries(
        {
            key: st.lists(
                {
                    "trial": WORDS,
                    "status": st.sampled_from(list(map(str, TrialStatus))),
                    "cause": st.sampled_from(list(map(str, Cause))),
                    "error": st.sampled_from(["CUDA.*", "a=b", "[a,b]", "(?i)x"]),
                    "metric": METRICS,
                    "experiment": st.sampled_from(["team_a/**", "lr-*", "s3://b/x/**"]),
                }[key],
                min_size=1,
                max_size=3,
            )
            for key in keys
        }
    )
)


@given(GIVEN)
def test_all_forms_are_the_same_selection(given):
    only = Only.parse(given)
    assert Only.parse(only.texts) == only
    assert Only.parse("\n".join(only.texts)) == only
    assert set(only.texts) == {
        f"{key}={Threshold.parse(value) if key == 'metric' else value}"
        for key, values in given.items()
        for value in values
    }


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.one_of(st.text(), st.integers()), inner)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["trial", "status", "cause", "error", "metric", "experiment", "x"])


@given(
    st.one_of(
        ANYTHING,
        st.dictionaries(KEYS, ANYTHING),
        st.lists(st.builds(lambda key, value: f"{key}={value}", KEYS, st.text())),
    )
)
def test_no_input_raises_anything_but_that_it_is_not_valid(given):
    try:
        only = Only.parse(given)
    except InvalidInputError:
        return
    assert only.texts


def test_the_example_of_the_docs():
    only = Only.parse(
        {
            "status": "ERROR",
            "cause": ["out_of_memory", "node_lost"],
            "error": "CUDA.*",
            "metric": "accuracy >= 0.8",
            "experiment": "team_a/**",
        }
    )
    assert only == Only(
        status=(TrialStatus.ERROR,),
        cause=(Cause.OUT_OF_MEMORY, Cause.NODE_LOST),
        error=("CUDA.*",),
        metric=(Threshold("accuracy", ">=", 0.8),),
        experiment=("team_a/**",),
    )
    assert str(only) == (
        "only=status=ERROR, cause=out_of_memory, cause=node_lost, error=CUDA.*, metric=accuracy>=0.8, "
        "experiment=team_a/**"
    )


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("cause = out_of_memory, node_lost", ["cause=out_of_memory", "cause=node_lost"]),
        ("trial=a,b,\n\n  status=ERROR \n", ["trial=a", "trial=b", "status=ERROR"]),
        ({"trial": "a\nb"}, ["trial=a", "trial=b"]),
        ({"trial": ["a,b"]}, ["trial=a,b"]),  # an item of a list is one id
        (["error=a, b", "error=a=b"], ["error=a, b", "error=a=b"]),
        (("metric=a/b <= 1e-3", "metric=loss>0"), ["metric=a/b<=0.001", "metric=loss>0.0"]),
        (["trial=a", "trial=a"], ["trial=a"]),
    ],
)
def test_texts_and_commas(given, texts):
    assert Only.parse(given).texts == texts


@pytest.mark.parametrize(
    "given",
    [
        "", " \n", [], {}, (), None, 3, b"cause=unknown", [""], ["cause"], ["cause="], ["=x"], [None],
        {"cause": ""}, {"cause": []}, {"cause": None}, {"cause": " "}, {"cause": "None"}, {"trial": ","},
        {"trial": ["a", ""]}, {"trial": [1]}, {"trial": {"a": 1}}, {"error": ""}, {"experiment": " "},
        {1: "x"}, "experiment=/", "experiment=s3://conn@bucket/**", "error=(",
    ],
)  # fmt: skip
def test_what_selects_by_nothing_is_refused(given):
    with pytest.raises(InvalidInputError, match="only"):
        Only.parse(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cause=lost_node", "cause 'lost_node' is unknown. Did you mean node_lost? Known are out_of_me"),
        ("cause=Out_Of_Memory", "Did you mean out_of_memory?"),
        ("status=FAILED", "status 'FAILED' is unknown. Known are PENDING, RUNNING, PAUSED"),
        ("status=error", "Did you mean ERROR?"),
        ("causes=unknown", "key 'causes' is unknown. Did you mean cause? Known are trial, status"),
        ("cause:unknown", "'cause:unknown' is not of the form KEY=VALUE"),
        ("metric=loss", "'loss' is not a bound of a metric. Write it as loss<0.5"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_was_probably_meant(given, message):
    with pytest.raises(InvalidInputError) as refused:
        Only.parse(given)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["loss", "loss<", "<1", "loss==1", "loss=1", "loss<nan", "loss<<1", "loss=<1", "loss<a", "a!>1"],
)  # fmt: skip
def test_a_bound_that_is_not_one(text):
    with pytest.raises(InvalidInputError, match="is not a bound of a metric"):
        Threshold.parse(text)


@pytest.mark.parametrize(
    ("text", "result", "holds"),
    [
        ("loss<0.5", {"loss": 0.4}, True),
        ("loss<0.5", {"loss": 0.5}, False),
        ("loss<=0.5", {"loss": 0.5}, True),
        ("loss>0", {"loss": 1}, True),
        ("loss>=1", {"loss": 1}, True),
        ("loss<inf", {"loss": 10**400}, True),
        ("val/loss<1", {"val": {"loss": 0}}, True),
        ("val/loss<1", {"val/loss": 0}, True),
        ("loss<1", {}, False),
        ("loss<1", {"loss": math.nan}, False),
        ("loss>=nope>1", {"loss>=nope": 2}, True),
        ("loss<1", {"loss": None}, False),
        ("loss<1", {"loss": "0"}, False),
        ("done<1", {"done": False}, False),
    ],
)
def test_which_results_are_within_a_bound(text, result, holds):
    assert Threshold.parse(text).holds(result) is holds


@given(
    st.sampled_from([[], ["trainable"], ["trainable", "unknown"]]),
    st.sampled_from([[], ["a+"], ["x", "b"]]),
    st.sampled_from(["trainable", "storage", "no word"]),
    st.text("abx", max_size=3),
)
def test_values_of_a_key_are_alternatives_and_all_keys_must_match(causes, errors, cause, error):
    only = Only(cause=tuple(map(Cause, causes)), error=tuple(errors))
    by_cause = not causes or cause in causes
    by_error = not errors or any(pattern.strip("+") in error for pattern in errors)
    assert only.takes_failure(cause, error) is (by_cause and by_error)


def test_globs_leave_other_experiments_alone():
    only = Only.parse(["experiment=team_a/**", "experiment=lr-*", "status=ERROR"])
    assert only.why_not("s3://b/sweeps/team_a/x", "s3://b/sweeps") == ""
    assert only.why_not("s3://b/sweeps/team_b/lr-1", "s3://b/sweeps") == ""
    assert only.why_not("s3://b/sweeps/team_b/team_a/x", "s3://b/sweeps") == (
        "no glob of only=experiment=team_a/**, experiment=lr-* names it"
    )
    assert Only.parse("status=ERROR").why_not("s3://b/x", None) == ""


def test_globs_alone_do_not_narrow_an_experiment():
    assert not Only.parse("experiment=x").narrows
    for text in ("trial=a", "status=ERROR", "cause=unknown", "error=x", "metric=a<1"):
        assert Only.parse(text).narrows
