"""What the user names is loaded, or refused in one sentence."""

import os

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.restore.request import RunnerRequest
from airflow_tune_restore.runner.loading import load, load_param_space, load_trainable
from airflow_tune_restore.storage.fs import open_store

pytest.importorskip("ray.tune")
MODULE = "tests.trainables"


@pytest.mark.parametrize(
    ("name", "imports"),
    [
        (f"{MODULE}:counting", ()),
        (f"{MODULE}:Counter", ()),
        (f"{MODULE}:Counter.step", ()),  # dotted attributes are followed
        (f"{MODULE}:counting_with_parameters", ()),
        (f"{MODULE}:counting_with_resources", ()),
        ("counting_by_name", (MODULE,)),
    ],
)
def test_every_kind_is_loaded(name, imports):
    assert load_trainable(name, imports)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tests.nowhere:train", "there is no module 'tests.nowhere' here"),
        (f"{MODULE}:missing", "has no 'missing'"),
        (f"{MODULE}:ITERATIONS", "is a int, not a function, Trainable or trainer"),
        (":train", "not of the form package.module:attribute"),
        ("nobody_registered_this", "is not registered with Tune"),
    ],
)
def test_what_is_none_is_refused(name, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        load_trainable(name)


def test_a_param_space_is_a_dict_or_makes_one():
    assert load_param_space(f"{MODULE}:UNFITTING_PARAM_SPACE") == {"learning_rate": 0.1}
    assert load_param_space(f"{MODULE}:fitting_param_space")["role"] == "x"
    with pytest.raises(InvalidInputError, match="not a dict"):
        load_param_space(f"{MODULE}:ITERATIONS")
    with pytest.raises(InvalidInputError, match="calling it failed with TypeError"):
        load_param_space(f"{MODULE}:counting")


def request(**fields) -> RunnerRequest:
    fields = {"trainable": f"{MODULE}:counting", "trainable_name": "counting", **fields}
    return RunnerRequest(
        experiment="", restore_id="", trial_id="", attempt=0, action="resume", **fields
    )


def write_tuner(store, body: bytes) -> None:
    store.put("tuner.pkl", body)


def test_param_space_keys_are_compared_with_the_recorded_ones(tmp_path):
    from ray import cloudpickle

    store = open_store(tmp_path.as_posix())
    write_tuner(store, cloudpickle.dumps({"__flattened_param_space_keys": ["fails_at", "role"]}))
    assert load(store, request(param_space=f"{MODULE}:fitting_param_space")).has_tuner
    with pytest.raises(InvalidInputError, match="Invalid `param_space`"):
        load(store, request(param_space=f"{MODULE}:UNFITTING_PARAM_SPACE"))


@pytest.mark.parametrize("body", [b"", b"\x80\x04", b"not a pickle"])
def test_a_damaged_tuner_pkl_is_as_good_as_none(tmp_path, body):
    store = open_store(tmp_path.as_posix())
    assert not load(store, request()).has_tuner
    write_tuner(store, body)
    assert not load(store, request()).has_tuner


def test_a_tuner_pkl_that_needs_a_module_is_refused(tmp_path):
    store = open_store(tmp_path.as_posix())
    write_tuner(store, b"ctests.gone\nCallback\n.")
    with pytest.raises(
        InvalidInputError, match=r"tests\.gone.* --ignore-tuner \(ignore_tuner=True\)"
    ):
        load(store, request())
    assert not load(store, request(ignore_tuner=True)).has_tuner


class Unloadable:
    """Its class is there, and raises when it is loaded: it reads a variable that is not set here."""

    def __reduce__(self):
        return os.environ.__getitem__, ("TUNE_TEST_NOT_SET_ANYWHERE",)


def test_a_tuner_pkl_whose_content_raises_is_refused_and_not_taken_for_damaged(tmp_path):
    from ray import cloudpickle

    store = open_store(tmp_path.as_posix())
    whole = cloudpickle.dumps({"callback": Unloadable()})
    write_tuner(store, whole)
    with pytest.raises(InvalidInputError, match=r"cannot be loaded here: KeyError.*--ignore-tuner"):
        load(store, request())
    for size in range(len(whole)):
        write_tuner(store, whole[:size])
        assert not load(store, request()).has_tuner


def test_what_an_ignored_tuner_pkl_says_of_param_space_does_not_count(tmp_path):
    from ray import cloudpickle

    store = open_store(tmp_path.as_posix())
    write_tuner(store, cloudpickle.dumps({"__flattened_param_space_keys": ["another"]}))
    given = request(ignore_tuner=True, param_space=f"{MODULE}:fitting_param_space")
    assert not load(store, given).has_tuner


@pytest.mark.parametrize("given", ["other", "Counter"])
def test_of_a_tuner_pkl_of_another_run_both_trainables_are_named(tmp_path, given):
    from ray import cloudpickle

    store = open_store(tmp_path.as_posix())
    write_tuner(store, cloudpickle.dumps({"__trainable_name": "other"}))
    with pytest.raises(InvalidInputError) as refused:
        load(store, request(trainable=f"{MODULE}:{given}", ignore_tuner=True))
    for words in (f"as {given!r}", "run with 'counting'", "names 'other'", "--ignore-tuner"):
        assert words in str(refused.value)


@pytest.mark.parametrize("body", [None, b"", b"\x80\x04", b"c\nx\n."])
def test_an_ignored_tuner_pkl_that_names_nobody_is_not_blamed(tmp_path, body):
    store = open_store(tmp_path.as_posix())
    if body is not None:
        write_tuner(store, body)
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        load(store, request(trainable=f"{MODULE}:other", ignore_tuner=True))


def test_another_trainable_is_refused():
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        load(None, request(trainable=f"{MODULE}:other"))
