"""The launcher that the options of `tune-restore restore` choose."""

import sys

import pytest

from airflow_tune_restore.cli.launchers import _OPTIONS, LauncherOptions
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.base import LauncherName
from airflow_tune_restore.launch.kubernetes.launcher import KubernetesLauncher
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.ray.launcher import RayLauncher
from airflow_tune_restore.restore.recipe import Recipe

HEAD = "http://head:8265"


def test_local_is_the_default_and_imports_what_lies_in_the_current_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    launcher = LauncherOptions(python="/opt/python").build()
    assert isinstance(launcher, LocalLauncher)
    assert (launcher.python, launcher.pythonpath) == ("/opt/python", [str(tmp_path)])


def test_only_a_local_runner_connects_to_the_address():
    assert LauncherOptions(address="head:6379").runner_address == "head:6379"
    assert LauncherOptions(on=LauncherName.RAY, address=HEAD).runner_address is None


def test_ray_gets_address_token_and_code(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    launcher = LauncherOptions(
        on=LauncherName.RAY,
        address=f"{HEAD}/",
        runtime_env_json='{"pip": ["lightgbm"], "working_dir": "elsewhere"}',
        working_dir=".",
    ).build()
    assert isinstance(launcher, RayLauncher)
    assert (launcher.cluster.address, launcher.cluster.token) == (HEAD, "secret")
    assert launcher.runtime_env == {"pip": ["lightgbm"], "working_dir": "."}


def test_jobs_get_the_place_of_the_store_unless_the_user_names_it():
    store_env = {"AWS_ENDPOINT_URL": "http://here:1", "AWS_REGION": "x"}
    options = LauncherOptions(
        on=LauncherName.RAY,
        address=HEAD,
        runtime_env_json='{"env_vars": {"AWS_ENDPOINT_URL": "http://in-the-cluster:1"}}',
    )
    assert options.build(store_env).env == {"AWS_REGION": "x"}
    assert options.build().env == {}


def test_no_code_is_uploaded_unless_it_is_named(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    launcher = LauncherOptions(on=LauncherName.RAY, address=HEAD).build()
    assert isinstance(launcher, RayLauncher)
    assert (launcher.cluster.token, launcher.runtime_env) == (None, {})


def test_kubernetes_gets_image_namespace_template_and_interpreter():
    launcher = LauncherOptions(
        on=LauncherName.KUBERNETES, image="sweeps:1", namespace="sweeps", pod_template="pod.yaml",
        python="/opt/python",
    ).build()  # fmt: skip
    assert isinstance(launcher, KubernetesLauncher)
    given = (launcher.image, launcher.namespace, launcher.pod_template, launcher.options.python)
    assert given == ("sweeps:1", "sweeps", "pod.yaml", "/opt/python")


@pytest.mark.parametrize("module", ["aiohttp", "kubernetes", "kubernetes_asyncio"])
def test_without_the_kubernetes_client_its_package_is_named(monkeypatch, module):
    for name in [name for name in sys.modules if ".launch.kubernetes." in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    command = r"pip install 'airflow-tune-restore\[kubernetes\]'"
    with pytest.raises(InvalidInputError, match=f"^--on kubernetes needs .*: {command}"):
        LauncherOptions(on=LauncherName.KUBERNETES, image="sweeps:1").build()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on": LauncherName.RAY}, "--address http://head:8265"),
        ({"on": LauncherName.RAY, "address": "ray://head:10001"}, "ray://head:10001"),
        (
            {"on": LauncherName.RAY, "address": HEAD, "runtime_env_json": "{"},
            "--runtime-env-json is not JSON",
        ),
        (
            {"on": LauncherName.RAY, "address": HEAD, "runtime_env_json": "[]"},
            "--runtime-env-json is not a JSON object",
        ),
    ],
)
def test_a_mistake_is_refused_with_one_sentence(options, words):
    with pytest.raises(InvalidInputError, match=words):
        LauncherOptions(**options).build()


@pytest.mark.parametrize("on", list(LauncherName))
def test_an_option_of_another_launcher_is_refused_with_its_own(on):
    foreign = {name for names in _OPTIONS.values() for name in names} - set(_OPTIONS[on])
    assert foreign
    words = f"cannot be used with --on {on}. It is an option of --on"
    for name in foreign:
        with pytest.raises(InvalidInputError, match=words):
            LauncherOptions(on=on, **{name: "x"}).build()


RECIPE = Recipe(
    trainable="m:t",
    python="/opt/own/python",
    image="own:2",
    env={"MODE": "night", "AWS_REGION": "own"},
    runtime_env={"pip": ["x"], "env_vars": {"A": "1"}},
)


def test_a_recipe_counts_in_place_of_the_options_of_each_launcher():
    local = LauncherOptions(python="/opt/python").build(recipe=RECIPE)
    assert isinstance(local, LocalLauncher)
    assert (local.python, local.env) == ("/opt/own/python", RECIPE.env)

    ray = LauncherOptions(
        on=LauncherName.RAY, address=HEAD, runtime_env_json='{"pip": ["y"], "config": {}}'
    ).build({"AWS_REGION": "x", "AWS_ENDPOINT_URL": "http://here:1"}, RECIPE)
    assert isinstance(ray, RayLauncher)
    assert ray.runtime_env == {"pip": ["x"], "env_vars": {"A": "1"}, "config": {}}
    assert ray.env == {"AWS_ENDPOINT_URL": "http://here:1", "MODE": "night", "AWS_REGION": "own"}

    pods = LauncherOptions(on=LauncherName.KUBERNETES, image="sweeps:1").build(recipe=RECIPE)
    assert isinstance(pods, KubernetesLauncher)
    assert (pods.image, pods.options.python, pods.env) == ("own:2", "/opt/own/python", RECIPE.env)


def test_a_recipe_without_these_fields_leaves_the_options():
    recipe = Recipe(trainable="m:t")
    options = LauncherOptions(on=LauncherName.KUBERNETES, image="sweeps:1", python="/opt/python")
    assert options.build(recipe=recipe) == options.build()
    assert options.unused_fields(recipe) == []


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({}, ["image", "runtime_env"]),
        ({"address": "head:6379"}, ["image"]),
        ({"on": LauncherName.RAY}, ["image", "python"]),
        ({"on": LauncherName.KUBERNETES}, ["runtime_env"]),
    ],
)
def test_the_fields_of_a_recipe_that_count_elsewhere_are_known(options, unused):
    assert LauncherOptions(**options).unused_fields(RECIPE) == unused
