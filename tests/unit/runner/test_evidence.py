"""Ray compares names alone. What pickles and configs record beside the name counts, too."""

import importlib
import json
import logging
import pickle
import sys
import textwrap

import pytest

from airflow_tune_restore.exceptions import TrainableMisfitError
from airflow_tune_restore.protocol.check import ExperimentToCheck, MatchedBy
from airflow_tune_restore.protocol.request import RunnerRequest
from airflow_tune_restore.runner import evidence
from airflow_tune_restore.runner.given import load_given
from airflow_tune_restore.runner.loading import load
from airflow_tune_restore.storage.fs import open_store
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state

tune = pytest.importorskip("ray.tune")

TRAINING = """
    from ray import tune

    def train(config):
        tune.report({"score": config["lr"] * config.get("momentum", 0)})

    class MyStopper(tune.Stopper):
        def __call__(self, trial_id, result):
            return False

        def stop_all(self):
            return False
"""


@pytest.fixture
def teams(tmp_path, monkeypatch):
    """Writes modules that can be imported, and forgets them at the end."""
    monkeypatch.syspath_prepend(tmp_path / "code")
    written = []

    def write(**sources):
        for name, source in sources.items():
            path = tmp_path / "code" / name / "training.py"
            path.parent.mkdir(parents=True)
            path.write_text(textwrap.dedent(source))
            written.append(name)
        importlib.invalidate_caches()

    yield write
    for name in [n for n in sys.modules if n.partition(".")[0] in written]:
        del sys.modules[name]


def searched_by(searched, constant=None, evaluated=None):
    """Return the fields of a row: what a searcher has chosen, and what all trials have."""
    config = {**searched, **(constant or {})}
    return {
        "trainable_name": "train",
        "config": config,
        "evaluated_params": searched if evaluated is None else evaluated,
        "_Trial__unresolved_config": config,
    }


def two_rows(searched, constant=None, **fields):
    """Return two trials that differ in what was searched."""
    other = {key: [value] for key, value in searched.items()}
    return [
        make_row(trial_id, status="ERROR", **searched_by(values, constant), **fields)
        for trial_id, values in (("a1", searched), ("a2", other))
    ]


@pytest.fixture
def experiment(tmp_path):
    """Makes an experiment that records a trainable of the name `train`."""

    def make(searched, tuner=None, *, constant=None, **files):
        directory = make_experiment(tmp_path / "exp", two_rows(searched, constant))
        (directory / "tuner.pkl").write_bytes(pickle.dumps({"callback": tuner}))
        for name, body in files.items():
            (directory / name).write_bytes(body)
        return directory

    return make


def match(directory, trainable="team_a.training:train", **fields):
    asked = ExperimentToCheck(
        experiment=str(directory), trainable_name="train", state=STATE_NAME, **fields
    )
    return evidence.match(open_store(str(directory)), load_given(trainable), asked)


def stopper(team):
    return importlib.import_module(f"{team}.training").MyStopper()


def test_a_pickle_that_names_the_module_of_the_trainable_is_evidence_for_it(teams, experiment):
    teams(team_a=TRAINING)
    assert match(experiment({}, stopper("team_a"))) == (MatchedBy.MODULE, "")
    assert match(experiment({"foreign": 1}, stopper("team_a"))) == (MatchedBy.MODULE, "")


def test_without_any_record_only_the_name_is_evidence(teams, experiment):
    teams(team_a=TRAINING)
    assert match(experiment({"lr": 1, "momentum": 2})) == (MatchedBy.NAME, "")
    assert match(experiment({})) == (MatchedBy.NAME, "")


def test_a_module_that_defines_another_trainable_of_the_name_is_evidence_against_it(
    teams, experiment
):
    teams(team_a=TRAINING, team_b=TRAINING)
    directory = experiment({"lr": 1}, stopper("team_b"))
    with pytest.raises(TrainableMisfitError) as refused:
        match(directory)
    assert str(refused.value) == (
        f"{directory} was probably made with another trainable of the name 'train': tuner.pkl names "
        "team_b.training.MyStopper, and team_b.training defines 'train'. Give the trainable that the "
        "experiment was made with, or leave the experiment to its own restore (another prefix, include, "
        "exclude); restore with trust_name=True (--trust-name) if team_a.training:train is the right one."
    )
    matched, warning = match(directory, trust_name=True)
    assert matched is MatchedBy.NAME
    assert warning.startswith("trust_name (--trust-name): team_a.training:train is used although")
    assert match(directory, ignore_tuner=True) == (MatchedBy.NAME, "")
    assert match(directory, "team_b.training:train") == (MatchedBy.MODULE, "")


@pytest.mark.parametrize(
    "line",
    [
        "import team_b.training",
        "from team_b import training",
        "from team_b.training import train as t",
    ],
)
def test_a_trainable_that_wraps_the_one_with_the_bug_is_not_another_one(teams, experiment, line):
    teams(team_a=f"{line}\ndef train(config): t(config)", team_b=TRAINING)
    assert match(experiment({"lr": 1}, stopper("team_b"))) == (MatchedBy.NAME, "")


def test_the_module_of_a_base_class_is_not_evidence_for_a_trainable(teams, experiment):
    base = "from ray import tune\nclass Base(tune.Trainable):\n    def step(self): pass\nclass Stop: pass"
    team = """
        from mlkit.training import Base

        class train(Base):
            def setup(self, config):
                self.k = config["{}"]
    """
    teams(mlkit=base, team_x=team.format("lr"), team_y=team.format("depth"))
    shared = importlib.import_module("mlkit.training").Stop()
    other = importlib.import_module("team_y.training").train
    own = importlib.import_module("team_x.training").train
    assert match(experiment({"lr": 1}, shared), "team_x.training:train") == (MatchedBy.NAME, "")
    with pytest.raises(TrainableMisfitError, match="It needs 'lr', which no trial has"):
        match(experiment({"depth": 1}, shared), "team_x.training:train")
    for tuner in ([other, shared], [other, own]):
        with pytest.raises(
            TrainableMisfitError, match=r"tuner\.pkl names team_y\.training\.train\."
        ):
            match(experiment({"lr": 1}, tuner), "team_x.training:train")


@pytest.mark.parametrize("wraps", ["", "@functools.wraps(f)"])
@pytest.mark.parametrize("passed", ["config", "dict(config)"])
def test_the_module_of_a_decorator_is_not_evidence_for_a_trainable(
    teams, experiment, wraps, passed
):
    decorator = f"""
        import functools

        class Log: pass

        def tracked(f):
            {wraps or "None"}
            def train(config):
                return f({passed})
            return train
    """
    team = "from mlkit.training import tracked\n@tracked\ndef train(config): return config['{}']"
    teams(mlkit=decorator, team_x=team.format("lr"), team_y=team.format("depth"))
    shared = importlib.import_module("mlkit.training").Log()
    own = importlib.import_module("team_x.training")
    own.Log = type("Log", (), {"__module__": "team_x.training"})
    assert match(experiment({"lr": 1}, shared), "team_x.training:train")[0] is MatchedBy.NAME
    assert match(experiment({"lr": 1}, own.Log()), "team_x.training:train")[0] is MatchedBy.MODULE
    if passed == "config":
        with pytest.raises(TrainableMisfitError, match="It needs 'lr'"):
            match(experiment({"depth": 1}, shared), "team_x.training:train")


def test_modules_that_are_imported_indirectly_are_not_evidence(teams, experiment):
    teams(
        team_a="import core.training\ndef train(config): core.training.fit(config)",
        core="from models import training\ndef fit(config): pass",
        models="import ray\nclass Net: pass\ndef train(model, data): pass",
    )
    net = importlib.import_module("models.training").Net()
    assert match(experiment({"lr": 1}, net)) == (MatchedBy.NAME, "")


def test_imports_are_followed_within_a_limit(teams, experiment, monkeypatch):
    teams(
        team_a="import b1.training\ndef train(config): pass",
        b1="import b2.training",
        b2="import b3.training",
        b3="import ray\nclass Net: pass\ndef train(model): pass",
    )
    directory = experiment({}, importlib.import_module("b3.training").Net())
    assert match(directory) == (MatchedBy.NAME, "")
    monkeypatch.setattr(evidence, "_MOST_IMPORTED", 2)
    with pytest.raises(TrainableMisfitError, match=r"b3\.training defines 'train'"):
        match(directory)


def test_a_module_without_ray_that_has_such_a_function_is_not_evidence(teams, experiment):
    teams(team_a=TRAINING, tools="class Slack: pass\ndef train(args): pass")
    slack = importlib.import_module("tools.training").Slack()
    assert match(experiment({"lr": 1}, slack)) == (MatchedBy.NAME, "")


def test_a_relative_import_counts_too(teams, experiment, tmp_path):
    teams(team_b=TRAINING)
    repaired = tmp_path / "code" / "team_b" / "repaired.py"
    repaired.write_text("def train(config):\n    from .training import train as t\n    t(config)")
    directory = experiment({"lr": 1}, stopper("team_b"))
    assert match(directory, "team_b.repaired:train") == (MatchedBy.NAME, "")


@pytest.mark.parametrize("kind", ["searcher-state", "search_gen_state"])
def test_the_state_of_a_searcher_is_read_too(teams, experiment, kind):
    teams(team_a=TRAINING, team_b=TRAINING)
    ending = "pkl" if kind == "searcher-state" else "json"
    name = f"{kind}-2027-11-23_10-00-00.{ending}"
    directory = experiment({"lr": 1}, **{name: pickle.dumps([stopper("team_b")])})
    with pytest.raises(TrainableMisfitError, match=f"{name} names team_b.training.MyStopper"):
        match(directory)


def test_a_config_that_holds_the_other_trainable_itself_is_evidence(teams, experiment):
    teams(team_a=TRAINING, team_b=TRAINING)
    other = importlib.import_module("team_b.training").train
    pickled = {"_type": "CLOUDPICKLE_FALLBACK", "value": pickle.dumps(other).hex()}
    directory = experiment({"lr": 1, "models": [{"fn": pickled}]})
    with pytest.raises(
        TrainableMisfitError, match=r"config of trial a1 names team_b\.training\.train"
    ):
        match(directory)


@pytest.mark.parametrize(
    "source",
    [
        "class MyStopper: pass",
        "from team_a.training import train\nclass MyStopper: pass",
        "def train(): pass\nclass MyStopper: pass",  # takes no config
        "class train: pass\nclass MyStopper: pass",  # not a Trainable
        "train = 1\nclass MyStopper: pass",
        "class MyStopper:\n    def train(self, config): pass",
    ],
)
def test_a_module_without_such_a_trainable_is_not_evidence(teams, experiment, source):
    teams(team_a=TRAINING, team_b=source)
    assert match(experiment({"lr": 1}, stopper("team_b"))) == (MatchedBy.NAME, "")


def test_a_library_with_such_a_function_is_not_evidence_unless_it_uses_ray(
    teams, experiment, tmp_path, monkeypatch
):
    """For example `xgboost.train`."""
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    for name, line in (("library", "import math"), ("wheel", "from ray import tune")):
        path = tmp_path / "site-packages" / name / "training.py"
        path.parent.mkdir(parents=True)
        path.write_text(f"{line}\ndef train(params, data): pass\nclass MyStopper: pass")
    importlib.invalidate_caches()
    teams(team_a=TRAINING)
    assert match(experiment({"lr": 1}, stopper("library"))) == (MatchedBy.NAME, "")
    with pytest.raises(TrainableMisfitError, match=r"wheel\.training defines 'train'"):
        match(experiment({"lr": 1}, stopper("wheel")))
    for name in ("library", "wheel", "library.training", "wheel.training"):
        sys.modules.pop(name)


def test_searched_parameters_that_the_code_does_not_take_are_evidence_against_it(teams, experiment):
    teams(team_a=TRAINING)
    directory = experiment({f"x{number}": 1 for number in range(7)}, constant={"lr": 1})
    words = (
        "team_a.training:train does not take 7 searched parameters of the trials: "
        "'x0', 'x1', 'x2', 'x3', 'x4' and 2 more. It takes no other searched parameter either. Give the"
    )
    with pytest.raises(TrainableMisfitError) as refused:
        match(directory)
    assert words in str(refused.value)
    assert match(directory, trust_name=True)[1]


def test_code_that_needs_other_keys_is_evidence_against_it(teams, experiment):
    teams(team_a=TRAINING)
    with pytest.raises(TrainableMisfitError) as refused:
        match(experiment({"momentum": 1, "depth": 1}))
    words = "1 searched parameter of the trials: 'depth'. It needs 'lr', which no trial has. Give"
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "read",
    [
        "config.get('width', 1)",
        "config['width'] if 'width' in config else 1",
        "config.setdefault('width', 1); config['width']",
        "x = config['width'] if config['lr'] else 1",
        "print(lambda: config['width'])",
    ],
)
def test_keys_that_may_be_missing_are_not_needed(teams, experiment, read):
    teams(team_a=f"def train(config):\n    config['lr']\n    {read}")
    matched, warning = match(experiment({"lr": 1, "repeat": 1}))
    assert matched is MatchedBy.NAME
    assert "'repeat'" in warning


def test_methods_that_a_trial_may_not_call_need_nothing(teams, experiment):
    teams(
        team_a="""
        from ray import tune

        class Base(tune.Trainable):
            def setup(self, config):
                self.width = config["width"]

        class train(Base):
            def setup(self, config):
                self.lr = config["lr"]

            def older(self):
                return self.config["depth"]
        """
    )
    assert "'repeat'" in match(experiment({"lr": 1, "repeat": 1}))[1]
    with pytest.raises(TrainableMisfitError, match="It needs 'lr', which no trial has"):
        match(experiment({"width": 1, "repeat": 1}))


def test_one_parameter_beside_others_is_only_a_warning(teams, experiment):
    """A number of repetitions, or what a callback reads from `trial.config`."""
    teams(team_a=TRAINING)
    assert match(experiment({"lr": 1, "repeat": 1})) == (
        MatchedBy.NAME,
        "team_a.training:train does not take 1 searched parameter of the trials: 'repeat'. It takes the "
        "others, so it is used. If another trainable of the name 'train' made this experiment, leave it "
        "out (another prefix, include, exclude).",
    )


def test_a_nested_parameter_counts_by_its_first_key(teams, experiment):
    teams(team_a=TRAINING)
    directory = experiment({})
    for chosen, foreign in ("model/width", "'model'"), ("a/b", "'a/b'"):
        rows = [
            make_row(
                f"a{value}",
                **searched_by(
                    {}, {"lr": 1, "model": {"width": value}, "a/b": value}, {chosen: value}
                ),
            )
            for value in (1, 2)
        ]
        (directory / STATE_NAME).write_bytes(make_state(rows))
        with pytest.raises(TrainableMisfitError, match=f"1 searched parameter .*: {foreign}"):
            match(directory)


def test_constants_that_a_searcher_records_as_evaluated_are_not_evidence(teams, tmp_path):
    """As HyperOpt and Ax do; of one trial, nobody can tell which values are constants."""
    teams(team_a=TRAINING)
    constant = {"team": "vision", "nan": float("nan")}
    for count in (2, 1):
        rows = [
            make_row(f"a{lr}", **searched_by({"lr": lr}, constant, {"lr": lr, **constant}))
            for lr in range(count)
        ]
        directory = make_experiment(tmp_path / f"exp{count}", rows)
        assert match(directory) == (MatchedBy.NAME, "")


def test_a_constant_may_be_a_label_that_no_code_reads(teams, experiment):
    teams(team_a=TRAINING)
    directory = experiment({"lr": 1}, constant={"note": "large", "blob": ["x"] * 1000})
    assert match(directory) == (MatchedBy.NAME, "")


def test_a_function_in_the_param_space_may_read_what_the_code_does_not(teams, experiment):
    """As in `{"base": tune.uniform(0, 1), "lr": tune.sample_from(lambda spec: spec.config.base)}`."""
    teams(team_a=TRAINING)
    rows = []
    for value in (1, 2):
        fields = searched_by({"base": value}, {"lr": value})
        fields["_Trial__unresolved_config"] = {"lr": ["__fn_ph", "e812d992"]}
        rows.append(make_row(f"a{value}", **fields))
    directory = experiment({"lr": 1})
    (directory / STATE_NAME).write_bytes(make_state(rows))
    assert match(directory) == (MatchedBy.NAME, "")


@pytest.mark.parametrize(
    "config",
    [
        {"lr": 1, "__trial_index__": 3},
        {"lr": 1, "env": "CartPole", "wandb": {}, "mlflow": {}, "callbacks": []},
        {"lr": 1, "named_in_the_module": 1, "by_keyword": 2},
    ],
)
def test_keys_of_ray_and_keys_that_the_module_names_are_not(teams, experiment, config):
    named = "\n    SPACE = {'named_in_the_module': 1, **dict(by_keyword=1)}\n"
    teams(team_a=TRAINING + named)
    assert match(experiment(config)) == (MatchedBy.NAME, "")


def test_a_param_space_that_the_user_gives_names_keys(teams, experiment):
    teams(team_a=TRAINING, space="SPACE = {'tag': 1}")
    directory = experiment({"lr": 1, "tag": 1})
    asked = ExperimentToCheck(experiment=str(directory), trainable_name="train", state=STATE_NAME)
    given = load_given("team_a.training:train", param_space="space.training:SPACE")
    assert evidence.match(open_store(str(directory)), given, asked) == (MatchedBy.NAME, "")


def test_trials_of_another_trainable_in_the_same_experiment_do_not_count(teams, tmp_path):
    teams(team_a=TRAINING)
    others = {**searched_by({"foreign": 1}), "trainable_name": "other"}
    more = {**others, **searched_by({"foreign": 2}), "trainable_name": "other"}
    rows = [
        make_row("a1", **searched_by({"lr": 1})),
        *(make_row(f"b{n}", **fields) for n, fields in enumerate((others, more))),
    ]
    assert match(make_experiment(tmp_path / "exp", rows)) == (MatchedBy.NAME, "")


BAD_STATES = [
    "",
    "[]",
    '{"trial_data": [',
    '{"trial_data": [["x", "y"], 3, [{}], []]}',
    "\x00" * 99,
]


@pytest.mark.parametrize("text", BAD_STATES)
def test_files_that_cannot_be_read_are_not_evidence(teams, experiment, text):
    teams(team_a=TRAINING)
    directory = experiment({"lr": 1})
    (directory / STATE_NAME).write_text(text)
    (directory / "tuner.pkl").write_bytes(text.encode())
    assert match(directory) == (MatchedBy.NAME, "")


def test_of_a_state_only_the_first_trials_are_read(teams, tmp_path, monkeypatch):
    teams(team_a=TRAINING)
    rows = [make_row(f"a{n}", **searched_by({"foreign": 1}, {"lr": 1})) for n in range(40)]
    rows.append(make_row("z", **searched_by({"foreign": 2}, {"lr": 1})))
    directory = make_experiment(tmp_path / "exp", rows)
    with pytest.raises(TrainableMisfitError, match="does not take 1 searched"):
        match(directory)
    monkeypatch.setattr("airflow_tune_restore.protocol.bounded_json.MAX_DOCUMENT_BYTES", 100_000)
    assert match(directory) == (MatchedBy.NAME, "")


def attempt(directory, **fields):
    plan = directory / ".tune_restore" / "r" / "plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps({"base": {"name": STATE_NAME}, "trials": []}))
    return load(
        open_store(str(directory)),
        RunnerRequest(
            experiment=str(directory), restore_id="r", trial_id="a1", attempt=1, action="resume",
            trainable="team_a.training:train", trainable_name="train", **fields,
        ),
    )  # fmt: skip


def test_every_runner_refuses_what_the_check_refuses(teams, experiment, caplog):
    teams(team_a=TRAINING)
    directory = experiment({"foreign": 1}, constant={"lr": 1})
    with pytest.raises(TrainableMisfitError, match="'foreign'"):
        attempt(directory)


def test_a_runner_warns_if_the_user_trusts_the_name(teams, experiment, caplog):
    teams(team_a=TRAINING)
    with caplog.at_level(logging.WARNING):
        assert attempt(experiment({"foreign": 1}, constant={"lr": 1}), trust_name=True).has_tuner
    assert "is used although" in caplog.text


def test_a_runner_warns_of_one_parameter_that_the_code_does_not_take(teams, experiment, caplog):
    teams(team_a=TRAINING)
    with caplog.at_level(logging.WARNING):
        attempt(experiment({"lr": 1, "repeat": 1}))
    assert "does not take 1 searched parameter of the trials: 'repeat'" in caplog.text


def test_generated_code_may_take_any_key(teams, experiment):
    branches = "".join(f"    elif config['lr'] == {n}: pass\n" for n in range(900))
    teams(team_a=f"def train(config):\n    if config['lr'] == 0: pass\n{branches}")
    limit = (
        sys.getrecursionlimit()
    )  # Hypothesis raises it, and a test that is interrupted leaves it so
    sys.setrecursionlimit(1000)
    try:
        assert match(experiment({"foreign": 1}, constant={"lr": 1})) == (MatchedBy.NAME, "")
    finally:
        sys.setrecursionlimit(limit)
