"""Recipes in the shell: `restore` with several trainables, and `recipe write`, `show` and `check`."""

import json
import sys

import pytest

from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.check import CheckAnswer, MatchedBy, Problem
from airflow_tune_restore.restore.recipe import Recipe
from airflow_tune_restore.restore.recipes import read_recipe
from airflow_tune_restore.storage.fs import open_store
from tests.support.checks import FITS, answer_all
from tests.support.ended_runs import EndedRuns
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state
from tests.support.records import leave_outcome

BAD = make_row("bad", status="ERROR", error=True, last_result_time=3.0)


@pytest.fixture
def experiment(tmp_path):
    return make_experiment(tmp_path / "x", [BAD], total_samples=1)


@pytest.fixture
def store(experiment):
    return open_store(str(experiment))


class Launcher(EndedRuns):
    """Stands for `LocalLauncher`: it keeps what it is asked, and its runners end well at once."""

    def __init__(self, store):
        self.built = []
        self.checked = []
        self.started = []
        self.answer = FITS
        self.on_check = lambda: None
        self._store = store

    def check(self, request, _timeout):
        self.checked.append(request)
        self.on_check()
        return answer_all(request, self.answer)

    def start(self, request):
        self.started.append(request)
        key = layout.snapshot_key(request.restore_id, request.trial_id, request.attempt)
        self._store.put(key, make_state([make_row(request.trial_id)]))
        leave_outcome(self._store, request, "finished")
        return self


@pytest.fixture
def launcher(store, monkeypatch):
    made = Launcher(store)

    def build(**options):
        made.built.append(options)
        return made

    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", build)
    return made


@pytest.fixture
def restore(tune_restore, experiment):
    return lambda *more: tune_restore("restore", experiment, "--stale-after", "0", *more)


def give(store, **fields):
    """Let the sweep have written its recipe."""
    store.put(layout.RECIPE, Recipe(**fields).to_json())


def test_the_trainable_of_the_recorded_name_is_checked_and_run(restore, launcher):
    code, out, err = restore(
        "--trainable", "m:other", "--trainable", "train=m:own", "--resume-errored"
    )
    assert code == 0, out + err
    assert [asked.trainable for asked in launcher.checked] == ["m:own"]
    assert [request.trainable for request in launcher.started] == ["m:own"]


def test_a_record_in_a_file_counts_in_place_of_the_options(restore, launcher, tmp_path):
    record = {
        "trainable": "m:own",
        "param_space": "m:space",
        "imports": ["m.registry"],
        "python": "/opt/own/python",
        "env": {"MODE": "night"},
        "resume_errored": True,
    }
    file = tmp_path / "trainables.json"
    file.write_text(json.dumps({"train": record}))
    options = ("--param-space", "m:default", "--import", "m.default", "--python", "/opt/python")
    code, out, err = restore("--trainable", file, *options)
    assert code == 0, out + err
    built = launcher.built[-1]
    assert (built["python"], built["env"]) == ("/opt/own/python", {"MODE": "night"})
    for request in (*launcher.checked, *launcher.started):
        given = (request.trainable, request.param_space, list(request.imports))
        assert given == ("m:own", "m:space", ["m.registry"])
    assert [request.trial_id for request in launcher.started] == ["bad"]


def test_options_are_the_defaults_of_a_record(restore, launcher, tmp_path):
    file = tmp_path / "trainables.json"
    file.write_text(json.dumps({"train": {"trainable": "m:own"}}))
    options = ("--param-space", "m:default", "--import", "m.default", "--python", "/opt/python")
    code, out, err = restore("--trainable", file, "--resume-errored", *options)
    assert code == 0, out + err
    (request,) = launcher.started
    assert (request.param_space, list(request.imports)) == ("m:default", ["m.default"])
    assert launcher.built[-1]["python"] == "/opt/python"


def test_an_experiment_without_a_trainable_is_refused_with_the_line_to_add(
    restore, launcher, experiment
):
    code, _, err = restore("--trainable", "other=m:t", "--resume-errored")
    assert code == 2
    assert "--trainable train=package.module:attribute" in err
    assert launcher.checked == []
    assert not (experiment / layout.ROOT).exists()


def test_a_plan_shows_what_the_flags_of_a_recipe_choose(tune_restore, experiment, store):
    def action(*options):
        _, out, _ = tune_restore("plan", experiment, *options, "--json")
        (trial,) = json.loads(out)["trials"]
        return trial["action"]

    give(store, trainable="m:train", resume_errored=True)
    assert action() == "keep"
    assert action("--recipes", "m") == "resume"
    assert action("--trainable", "other:train") == "keep"


def test_without_trainable_and_recipes_nothing_is_read(restore):
    code, _, err = restore()
    assert code == 2
    assert "Add --trainable package.module:attribute" in err
    assert "--recipes" in err


def test_the_recipe_of_the_sweep_is_used_where_it_is_allowed(restore, launcher, store):
    give(store, trainable="team_a.training:train", resume_errored=True)
    code, _, err = restore("--recipes", "team_b.*")
    assert code == 2
    assert "team_a.training" in err
    assert launcher.checked == []
    code, out, err = restore("--recipes", "team_b.*", "--recipes", "team_a.*")
    assert code == 0, out + err
    assert [request.trainable for request in launcher.started] == ["team_a.training:train"]


def test_a_recipe_that_names_an_interpreter_needs_that_all_is_allowed(restore, launcher, store):
    give(store, trainable="team_a.training:train", python="/opt/a/python", resume_errored=True)
    code, _, err = restore("--recipes", "team_a.*")
    assert code == 2
    assert "--recipes '*'" in err
    code, out, err = restore("--recipes", "*")
    assert code == 0, out + err
    assert launcher.built[-1]["python"] == "/opt/a/python"


def test_without_recipes_the_one_of_the_sweep_is_not_read(restore, launcher, store):
    give(store, trainable="evil:train", python="/tmp/evil")
    code, out, err = restore("--trainable", "m:t", "--resume-errored")
    assert code == 0, out + err
    assert [request.trainable for request in launcher.started] == ["m:t"]


def test_a_recipe_that_changes_after_the_check_changes_nothing(tune_restore, monkeypatch, tmp_path):
    """The samples are drawn with what was checked, too."""
    experiment = make_experiment(tmp_path / "x", [BAD], total_samples=2)
    store = open_store(str(experiment))
    launcher = Launcher(store)
    monkeypatch.setattr("airflow_tune_restore.launch.local.LocalLauncher", lambda **_: launcher)
    give(store, trainable="good.one:train", resume_errored=True)
    launcher.on_check = lambda: give(store, trainable="good.other:train")
    tune_restore("restore", experiment, "--stale-after", "0", "--recipes", "good.*")
    started = [(request.trial_id, request.trainable) for request in launcher.started]
    assert started == [("bad", "good.one:train"), (layout.WHOLE_EXPERIMENT, "good.one:train")]


@pytest.mark.parametrize(
    ("options", "unused", "runtime_env"),
    [((), "image, runtime_env", {}), (("--address", "head:6379"), "image", {"pip": ["x"]})],
)
def test_fields_of_other_launchers_are_noted(
    restore, launcher, tmp_path, options, unused, runtime_env
):
    file = tmp_path / "trainables.toml"
    file.write_text("[train]\ntrainable = 'm:t'\nimage = 'x:1'\nruntime_env = {pip = ['x']}\n")
    _, _, err = restore("--trainable", file, "--resume-errored", *options)
    assert f"note: --on local does not use these fields of the recipe: {unused}\n" in err
    assert [request.runtime_env for request in launcher.started] == [runtime_env]


def test_an_option_of_another_launcher_is_refused_before_the_experiment_is_read(
    tune_restore, experiment
):
    (experiment / STATE_NAME).write_bytes(b"{")
    code, _, err = tune_restore("restore", experiment, "--trainable", "m:t", "--image", "sweeps:1")
    assert code == 2
    assert "--image cannot be used with --on local" in err


EVERYTHING = (
    *("--param-space", "m:space", "--search-alg", "m:alg", "--import", "m.a", "--import", "m.b"),
    *("--python", "/opt/python", "--image", "sweeps:1", "--env", "MODE=night=1", "--env", "EMPTY="),
    *("--runtime-env-json", '{"pip": ["x"]}', "--resume-errored", "--no-resume-unfinished"),
    *("--resume-cut-short", "--finished", "restart", "--strategy", "per_trial", "--fresh-budget"),
    *("--trim-results", "--newest-checkpoint", "--allow-scratch", "--remember-scheduler"),
    *("--no-ignore-tuner", "--trust-name", "--no-restart-errored"),
)
WRITTEN = {
    "schema": 1,
    "trainable": "m:t",
    "param_space": "m:space",
    "search_alg": "m:alg",
    "imports": ["m.a", "m.b"],
    "python": "/opt/python",
    "image": "sweeps:1",
    "env": {"MODE": "night=1", "EMPTY": ""},
    "runtime_env": {"pip": ["x"]},
    "resume_errored": True,
    "restart_errored": False,
    "resume_unfinished": False,
    "resume_cut_short": True,
    "resume_config": {"finished": "restart"},
    "strategy": "per_trial",
    "fresh_budget": True,
    "trim_results": True,
    "newest_checkpoint": True,
    "allow_scratch": True,
    "remember_scheduler": True,
    "ignore_tuner": False,
    "trust_name": True,
}


def test_write_takes_every_field_and_show_prints_what_is_written(tune_restore, experiment, store):
    assert set(WRITTEN) == set(Recipe.__struct_fields__)
    code, out, err = tune_restore("recipe", "write", experiment, "--trainable", "m:t", *EVERYTHING)
    assert code == 0, err
    text, _, sentence = out.rstrip("\n").rpartition("\n")
    assert json.loads(text) == WRITTEN
    assert sentence == f"Written to {layout.RECIPE} of {experiment}."
    assert json.loads((experiment / layout.RECIPE).read_bytes()) == WRITTEN
    assert read_recipe(store).strategy == "per_trial"

    code, out, _ = tune_restore("recipe", "show", experiment)
    text, _, sentence = out.rstrip("\n").rpartition("\n")
    assert (code, json.loads(text)) == (0, WRITTEN)
    assert sentence == "The experiment has recorded the trainable train."
    code, out, _ = tune_restore("recipe", "show", experiment, "--json")
    assert json.loads(out) == {
        "experiment": str(experiment),
        "recipe": WRITTEN,
        "trainable_names": ["train"],
    }


def test_write_prints_json(tune_restore, experiment):
    _, out, _ = tune_restore("recipe", "write", experiment, "--trainable", "m:t", "--json")
    recipe = {"schema": 1, "trainable": "m:t"}
    assert json.loads(out) == {"experiment": str(experiment), "recipe": recipe}


def test_a_recipe_is_overwritten_only_if_that_is_wanted(tune_restore, experiment, store):
    command = ("recipe", "write", experiment, "--trainable")
    assert tune_restore(*command, "m:first")[0] == 0
    code, _, err = tune_restore(*command, "m:second")
    assert code == 2
    assert "has a recipe already" in err
    assert "m:first" in err
    assert "--force" in err
    assert read_recipe(store).trainable == "m:first"
    assert tune_restore(*command, "m:second", "--force")[0] == 0
    assert read_recipe(store).trainable == "m:second"
    (experiment / layout.RECIPE).write_text("{")
    code, _, err = tune_restore(*command, "m:third")
    assert code == 2
    assert f"has a recipe already: {layout.RECIPE} cannot be used" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--runtime-env-json", '{"working_dir": "/home/me"}'), "runtime_env names /home/me"),
        (("--runtime-env-json", "{"), "--runtime-env-json is not JSON"),
        (("--env", "MODE"), "--env MODE is not NAME=VALUE"),
        (("--env", "=1"), "--env =1 is not NAME=VALUE"),
        (("--strategy", "sideways"), "sideways"),
        (("--param-space", " "), "param_space"),
        (("--errored", "skip", "--resume-errored"), "two choices for the same trials"),
        (("--env", f"BIG={'x' * 70_000}"), "it has more than 65536 bytes"),
    ],
)
def test_a_recipe_that_no_restore_would_take_is_not_written(
    tune_restore, experiment, options, words
):
    code, out, err = tune_restore("recipe", "write", experiment, "--trainable", "m:t", *options)
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith(f"error: Nothing was written to {experiment}: ")
    assert not (experiment / layout.ROOT).exists()


def test_only_an_experiment_gets_a_recipe(tune_restore, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (("write", "--trainable", "m:t"), ("show",), ("check",)):
        code, _, err = tune_restore("recipe", command[0], tmp_path / "empty", *command[1:])
        assert code == 2
        assert "it has neither a tuner.pkl nor an experiment state" in err
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_link_is_neither_written_nor_read_through(tune_restore, experiment, tmp_path):
    target = tmp_path / "target.json"
    target.write_text('{"schema": 1, "trainable": "m:linked"}')
    (experiment / layout.ROOT).mkdir()
    (experiment / layout.RECIPE).symlink_to(target)
    command = ("recipe", "write", experiment, "--trainable", "m:t")
    for refused in (command, ("recipe", "show", experiment), ("recipe", "check", experiment)):
        code, out, err = tune_restore(*refused)
        assert (code, out, "is a link" in err) == (2, "", True), err
    assert tune_restore(*command, "--force")[0] == 0  # the link itself is replaced
    assert not (experiment / layout.RECIPE).is_symlink()
    assert "m:linked" in target.read_text()


def test_a_linked_directory_is_not_written_into(tune_restore, experiment, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (experiment / layout.ROOT).symlink_to(tmp_path / "elsewhere")
    for force in ((), ("--force",)):
        code, _, err = tune_restore("recipe", "write", experiment, "--trainable", "m:t", *force)
        assert (code, "is a link" in err) == (2, True), err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_refused(tune_restore, experiment):
    (experiment / layout.ROOT).write_text("in the way")
    code, _, err = tune_restore("recipe", "write", experiment, "--trainable", "m:t")
    assert code == 2
    assert str(experiment) in err


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_experiment_without_a_recipe_is_exit_code_2(tune_restore, experiment, command):
    code, out, err = tune_restore("recipe", command, experiment)
    assert (code, out) == (2, "")
    assert f"{experiment} has no recipe" in err
    assert f"tune-restore recipe write {experiment} --trainable" in err


@pytest.mark.parametrize("command", ["show", "check"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"trainable": 1}',
        b'{"schema": 2, "trainable": "m:t"}',
        b'{"trainable": "m:t", "surprise": 1}',
        b" " * 100_000,
        b'{"trainable": "m:t", "runtime_env": {"working_dir": "/etc"}}',
    ],
)
def test_a_recipe_that_is_not_valid_is_a_sentence(tune_restore, experiment, store, command, body):
    store.put(layout.RECIPE, body)
    code, out, err = tune_restore("recipe", command, experiment)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {experiment}: {layout.RECIPE} cannot be used: ")
    assert err.count("\n") == 1


def test_a_check_without_patterns_starts_nothing(tune_restore, experiment, store, launcher):
    give(store, trainable="evil.module:train", python="/tmp/evil")
    code, out, err = tune_restore("recipe", "check", experiment)
    assert code == 0, err
    assert "The recipe is valid. The experiment has recorded the trainable train." in out
    assert "evil.module:train was not loaded" in out
    assert (launcher.built, launcher.checked) == ([], [])
    _, out, _ = tune_restore("recipe", "check", experiment, "--json")
    found = json.loads(out)
    assert (found["trainable_names"], found["matched_by"], found["note"]) == (["train"], None, "")


def test_a_registered_name_that_was_not_recorded_is_refused_without_loading(
    tune_restore, experiment, store, launcher
):
    give(store, trainable="other", imports=("m.registry",))
    code, _, err = tune_restore("recipe", "check", experiment)
    assert code == 2
    assert "its recipe names the trainable other" in err
    assert "recorded the trainable train" in err
    assert launcher.checked == []


def test_a_check_with_patterns_refuses_what_does_not_match_before_it_loads(
    tune_restore, experiment, store, launcher
):
    give(store, trainable="team_a.training:train")
    code, _, err = tune_restore("recipe", "check", experiment, "--recipes", "team_b.*")
    assert code == 2
    assert "team_a.training" in err
    assert launcher.checked == []


def test_a_check_with_patterns_loads_with_the_interpreter_and_the_variables_of_the_recipe(
    tune_restore, experiment, store, launcher
):
    give(
        store, trainable="m:t", param_space="m:space", imports=("m.a",), python="/opt/python",
        env={"MODE": "night"}, trust_name=True,
    )  # fmt: skip
    launcher.answer = CheckAnswer(experiment="", matched_by=MatchedBy.MODULE, message="A warning.")
    code, out, err = tune_restore("recipe", "check", experiment, "--recipes", "*")
    assert code == 0, err
    assert "its trainable fits: a pickle of it names this module. A warning." in out
    ((built,), (asked,)) = launcher.built, launcher.checked
    assert (built["python"], built["env"]) == ("/opt/python", {"MODE": "night"})
    assert (asked.trainable, asked.param_space, asked.imports) == ("m:t", "m:space", ["m.a"])
    (checked,) = asked.experiments
    assert (checked.trainable_name, checked.state, checked.trust_name) == (
        "train",
        STATE_NAME,
        True,
    )
    assert launcher.started == []
    _, out, _ = tune_restore("recipe", "check", experiment, "--recipes", "*", "--json")
    found = json.loads(out)
    assert (found["matched_by"], found["note"]) == ("module", "A warning.")


def test_a_check_of_an_experiment_that_never_started_asks_for_its_recorded_name(
    tune_restore, experiment, store, launcher
):
    (experiment / STATE_NAME).unlink()
    give(store, trainable="m:t")
    code, _, err = tune_restore("recipe", "check", experiment, "--recipes", "m")
    assert code == 0, err
    (checked,) = launcher.checked[0].experiments
    assert (checked.trainable_name, checked.state) == ("train", "")


def test_a_misfit_is_exit_code_2(tune_restore, experiment, store, launcher):
    give(store, trainable="m:t")
    launcher.answer = CheckAnswer(experiment="", problem=Problem.MISFIT, message="It is another.")
    code, out, err = tune_restore("recipe", "check", experiment, "--recipes", "m")
    assert (code, out, err) == (2, "", "error: It is another.\n")


def test_a_check_loads_in_a_child_process(tune_restore, experiment, store, tmp_path, monkeypatch):
    """With the real launcher: this process imports nothing that a recipe names."""
    (tmp_path / "own_module.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    give(store, trainable="own_module:train")
    code, _, err = tune_restore("recipe", "check", experiment)
    assert code == 0, err
    code, _, err = tune_restore("recipe", "check", experiment, "--recipes", "own_module")
    assert code == 2
    assert "importing own_module failed with RuntimeError: imported" in err
    assert "own_module" not in sys.modules


@pytest.mark.parametrize("command", ["write", "show", "check"])
def test_help_fits_a_terminal_of_the_usual_width(tune_restore, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = tune_restore("recipe", command, "--help")
    assert code == 0
    assert "…" not in out
    assert "--json" in out
