"""What the user names is loaded, or refused in one sentence."""

import os
import re

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.protocol import pickle_reader
from airflow_tune_restore.protocol.check import CheckRequest, ExperimentToCheck
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import check as runner_check
from airflow_tune_restore.runner.given import load_given, load_param_space, load_trainable
from airflow_tune_restore.runner.loading import load
from airflow_tune_restore.storage.fs import open_store
from tests.support import ROOT

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
        ("tests.nowhere:train", "module 'tests.nowhere' does not exist here"),
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


def check(store, request: RunnerRequest) -> None:
    """Check one experiment, as a process does for many."""
    given = load_given(
        request.trainable,
        param_space=request.param_space,
        imports=request.imports,
        searchers=[request.search_alg],
    )
    names = ("experiment", "trainable_name", "search_alg", "ignore_tuner")
    asked = {name: getattr(request, name) for name in names}
    runner_check.check(store, given, ExperimentToCheck(**asked))


def write_tuner(store, body: bytes) -> None:
    store.put("tuner.pkl", body)


@pytest.mark.parametrize("ask", [load, check])
def test_param_space_keys_are_compared_with_the_recorded_ones(tmp_path, ask):
    from ray import cloudpickle

    store = open_store(tmp_path.as_posix())
    write_tuner(store, cloudpickle.dumps({"__flattened_param_space_keys": ["fails_at", "role"]}))
    ask(store, request(param_space=f"{MODULE}:fitting_param_space"))
    with pytest.raises(InvalidInputError, match="Invalid `param_space`"):
        ask(store, request(param_space=f"{MODULE}:UNFITTING_PARAM_SPACE"))


@pytest.mark.parametrize("body", [b"", b"\x80\x04", b"not a pickle"])
def test_a_damaged_tuner_pkl_is_as_good_as_none(tmp_path, body):
    store = open_store(tmp_path.as_posix())
    assert not load(store, request()).has_tuner
    write_tuner(store, body)
    assert not load(store, request()).has_tuner


@pytest.mark.parametrize("ask", [load, check])
@pytest.mark.parametrize("module", ["gone", "tests.gone", "tests.gone.further", "xml.gone"])
def test_a_tuner_pkl_that_needs_a_module_is_refused(tmp_path, ask, module):
    store = open_store(tmp_path.as_posix())
    write_tuner(store, f"c{module}\nCallback\n.".encode())
    refusal = rf"{'.*'.join(module.split('.')[:2])}.* --ignore-tuner \(ignore_tuner=True\)"
    with pytest.raises(InvalidInputError, match=refusal):
        ask(store, request())
    ask(store, request(ignore_tuner=True))


@pytest.mark.parametrize(
    "module", ["", "tests..x", "a b", "x\x00", "\x1b[31m", pytest.param("a" * 100_000, id="long")]
)
def test_a_check_is_not_upset_by_the_name_of_a_module(tmp_path, module):
    store = open_store(tmp_path.as_posix())
    write_tuner(store, f"c{module}\nCallback\n.".encode())
    with pytest.raises(InvalidInputError, match=r"module .* does not exist") as refused:
        check(store, request())
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1_000


def test_a_check_imports_none_of_the_modules_that_tuner_pkl_needs(tmp_path, monkeypatch):
    package = tmp_path / "needed" / "deeper"
    package.mkdir(parents=True)
    for directory in (package, package.parent):
        (directory / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "module.py").write_text("raise AssertionError('imported')")
    (tmp_path / "space" / "of_names" / "inner").mkdir(parents=True)
    (tmp_path / "space" / "of_names" / "inner" / "module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    store = open_store(tmp_path.as_posix())
    for module in ("needed.deeper.module", "space.of_names.inner.module", "itertools", "os.path"):
        write_tuner(store, f"c{module}\nCallback\n.".encode())
        check(store, request())
    write_tuner(store, b"cneeded.deeper.gone\nCallback\n.")
    with pytest.raises(InvalidInputError, match=r"module 'needed\.deeper\.gone' does not exist"):
        check(store, request())


class Trap:
    """Makes a directory when it is loaded."""

    def __init__(self, sprung) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


def write_trap(store, sprung) -> None:
    """Write a tuner.pkl and the states of a searcher that do something when they are loaded."""
    from ray import cloudpickle

    said = {
        "__trainable_name": "counting",
        "__flattened_param_space_keys": ["fails_at", "role"],
        "callback": Trap(sprung),
    }
    write_tuner(store, cloudpickle.dumps(said))
    session = "2026-11-23_10-00-00"
    learned = {"_metric": "loss", "_mode": "min", "_a_foreign_one": 1, "x": Trap(sprung)}
    store.put(f"searcher-state-{session}.pkl", cloudpickle.dumps(learned))
    drawn = {"total_samples": 4, "x": Trap(sprung)}
    store.put(f"search_gen_state-{session}.json", cloudpickle.dumps(drawn))


def test_the_trap_springs_when_it_is_loaded(tmp_path):
    store = open_store(tmp_path.as_posix())
    write_trap(store, tmp_path / "sprung")
    load(store, request())
    assert (tmp_path / "sprung").exists()


SEARCHER = "tests.support.experiments.searchers:optuna"
QUESTIONS = [
    ({}, None),
    ({"param_space": f"{MODULE}:fitting_param_space"}, None),
    ({"param_space": f"{MODULE}:UNFITTING_PARAM_SPACE"}, "Invalid `param_space`"),
    ({"trainable": f"{MODULE}:other"}, "the experiment was made with 'counting'"),
    (
        {"trainable_name": "another", "ignore_tuner": True},
        "belongs to another run|tuner.pkl, which names 'counting'",
    ),
    (
        {"search_alg": SEARCHER, "ignore_tuner": True},
        "saved by another class than OptunaSearch .it has _a_foreign_one",
    ),
]


@pytest.mark.parametrize(("fields", "refusal"), QUESTIONS)
def test_a_check_answers_without_loading_anything_from_storage(tmp_path, fields, refusal):
    store = open_store(tmp_path.as_posix())
    write_trap(store, tmp_path / "sprung")
    if refusal is None:
        check(store, request(**fields))
    else:
        with pytest.raises(InvalidInputError, match=refusal):
            check(store, request(**fields))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("fields", "refusal"), [QUESTIONS[1], QUESTIONS[-1]])
def test_the_process_that_checks_loads_nothing_from_storage(tmp_path, fields, refusal):
    fields = dict(fields)
    store = open_store(tmp_path.as_posix())
    write_trap(store, tmp_path / "sprung")
    launcher = LocalLauncher(pythonpath=[ROOT.as_posix()])
    given = {"param_space": fields.pop("param_space", None), "trainable": f"{MODULE}:counting"}
    asked = ExperimentToCheck(experiment=store.uri, trainable_name="counting", **fields)
    (answer,) = launcher.check(CheckRequest(**given, experiments=[asked]))
    assert (answer.problem, answer.message) == (None, "") or re.search(refusal, answer.message)
    assert not (tmp_path / "sprung").exists()


def test_what_is_too_large_to_be_read_symbolically_is_left_to_the_run(tmp_path, monkeypatch):
    from ray import cloudpickle

    store = open_store(tmp_path.as_posix())
    write_tuner(store, cloudpickle.dumps({"__flattened_param_space_keys": ["another"]}))
    given = request(param_space=f"{MODULE}:fitting_param_space")
    with pytest.raises(InvalidInputError, match="Invalid `param_space`"):
        check(store, given)
    for name, limit in (("MAX_BYTES", 10), ("MAX_OPCODES", 5)):
        with monkeypatch.context() as limited:
            limited.setattr(pickle_reader, name, limit)
            check(store, given)


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
    for words in (
        f"has the name {given!r}",
        "run with 'counting'",
        "names 'other'",
        "--ignore-tuner",
    ):
        assert words in str(refused.value)


@pytest.mark.parametrize("body", [None, b"", b"\x80\x04", b"c\nx\n."])
def test_an_ignored_tuner_pkl_that_names_nobody_is_not_blamed(tmp_path, body):
    store = open_store(tmp_path.as_posix())
    if body is not None:
        write_tuner(store, body)
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        load(store, request(trainable=f"{MODULE}:other", ignore_tuner=True))


def test_a_tuner_pkl_that_is_a_link_to_itself_is_as_good_as_none(tmp_path):
    (tmp_path / "tuner.pkl").symlink_to("tuner.pkl")
    store = open_store(tmp_path.as_posix())
    assert not load(store, request()).has_tuner
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        load(store, request(trainable=f"{MODULE}:other", ignore_tuner=True))


def test_another_trainable_is_refused():
    with pytest.raises(InvalidInputError, match="the experiment was made with 'counting'"):
        load(None, request(trainable=f"{MODULE}:other"))
