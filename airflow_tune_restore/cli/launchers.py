"""Where the trials of `tune-restore restore` run: the launcher that its options choose."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from airflow_tune_restore.cli.option_groups import flag_of
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.base import Launcher, LauncherName
from airflow_tune_restore.restore.recipe import Recipe

_OPTIONS: Mapping[LauncherName, tuple[str, ...]] = {
    LauncherName.LOCAL: ("address", "python"),
    LauncherName.RAY: ("address", "runtime_env_json", "working_dir"),
    LauncherName.KUBERNETES: ("image", "namespace", "pod_template", "python"),
}
"""The options that each launcher has."""

_RECIPE_FIELDS: Mapping[LauncherName, tuple[str, ...]] = {
    LauncherName.LOCAL: ("env", "python"),
    LauncherName.RAY: ("env", "runtime_env"),
    LauncherName.KUBERNETES: ("env", "image", "python"),
}
"""The fields of a recipe that each launcher has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherOptions:
    """Where the trials run."""

    on: Annotated[
        LauncherName,
        "Where the trials run: as child processes, as Ray jobs or as pods. Jobs and pods read "
        "the experiment with the credentials of their own environment, not with yours.",
    ] = LauncherName.LOCAL
    address: Annotated[
        str | None,
        "With --on ray: the dashboard of the cluster, http://head:8265; its token comes from "
        "RAY_AUTH_TOKEN. With --on local: a Ray cluster to connect to; without it each trial starts "
        "a private Ray.",
    ] = None
    runtime_env_json: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="With --on ray: Ray runtime_env of the jobs, as a JSON object."
        ),
    ] = None
    working_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="With --on ray: directory with your code, or URI of a .zip file. It is uploaded for the "
            "jobs, in place of working_dir in the runtime_env. Without it no code of yours is uploaded.",
        ),
    ] = None
    image: Annotated[
        str | None,
        "With --on kubernetes: image with Ray, this package and your code. Required, unless the "
        "pod template names it.",
    ] = None
    namespace: Annotated[str | None, "With --on kubernetes: namespace of the pods."] = None
    pod_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="With --on kubernetes: YAML file of a pod to start from."
        ),
    ] = None
    python: Annotated[
        str | None,
        "Interpreter that has Ray and your code; with --on kubernetes the one in the image.",
    ] = None

    @property
    def runner_address(self) -> str | None:
        """The Ray cluster that a local runner connects to; jobs and pods have their own Ray."""
        return self.address if self.on is LauncherName.LOCAL else None

    def build(
        self, store_env: Mapping[str, str] | None = None, recipe: Recipe | None = None
    ) -> Launcher:
        """Return the launcher, with what a recipe gives in place of these options.

        `store_env` names the place of the store, for jobs of a Ray cluster. A call without a recipe
        refuses the same options, before there is one.

        Raises:
            InvalidInputError: If an option or a package is missing, or an option is another launcher's.
        """
        self._refuse_foreign()
        given: dict[str, Any] = {
            "env": {},
            "image": self.image,
            "python": self.python,
            "runtime_env": self._runtime_env(),
        }
        if recipe is not None:
            given = recipe.over(given)
        match self.on:
            case LauncherName.LOCAL:
                return self._local(given)
            case LauncherName.RAY:
                return self._ray(given, store_env or {})
            case LauncherName.KUBERNETES:
                return self._kubernetes(given)

    def unused_fields(self, recipe: Recipe) -> list[str]:
        """Return the fields of a recipe that count on other launchers only."""
        own = {*_RECIPE_FIELDS[self.on], *(["runtime_env"] if self.runner_address else [])}
        every = {name for names in _RECIPE_FIELDS.values() for name in names}
        return sorted(name for name in every - own if getattr(recipe, name) is not None)

    def _refuse_foreign(self) -> None:
        own = _OPTIONS[self.on]
        for field in fields(self):
            if field.name in ("on", *own) or getattr(self, field.name) is None:
                continue
            where = [name for name, options in _OPTIONS.items() if field.name in options]
            raise InvalidInputError(
                f"{flag_of(field.name)} cannot be used with --on {self.on}. It is an option of "
                f"--on {' and --on '.join(where)}."
            )

    def _local(self, given: Mapping[str, Any]) -> Launcher:
        from airflow_tune_restore.launch.local import LocalLauncher

        return LocalLauncher(
            python=given["python"] or sys.executable,
            env=given["env"],
            pythonpath=[os.getcwd()],  # noqa: PTH109  a string for PYTHONPATH
        )

    def _ray(self, given: Mapping[str, Any], store_env: Mapping[str, str]) -> Launcher:
        from airflow_tune_restore.launch.ray.cluster import Cluster, parse_cluster_address
        from airflow_tune_restore.launch.ray.launcher import RayLauncher

        if self.address is None:
            raise InvalidInputError(
                "--on ray needs the address of the cluster's dashboard: --address http://head:8265."
            )
        cluster = Cluster(
            address=parse_cluster_address(self.address),
            token=os.environ.get("RAY_AUTH_TOKEN") or None,
        )
        runtime_env = given["runtime_env"]
        chosen = runtime_env.get("env_vars") or {}  # the cluster may reach the store elsewhere
        env = {name: value for name, value in store_env.items() if name not in chosen}
        return RayLauncher(cluster=cluster, runtime_env=runtime_env, env={**env, **given["env"]})

    def _kubernetes(self, given: Mapping[str, Any]) -> Launcher:
        try:
            import kubernetes  # noqa: F401  the launcher imports both clients when it uses them
            import kubernetes_asyncio  # noqa: F401

            from airflow_tune_restore.launch.kubernetes.launcher import KubernetesLauncher
            from airflow_tune_restore.launch.kubernetes.pod_resources import PodSpecOptions
        except ModuleNotFoundError as error:
            raise InvalidInputError(
                "--on kubernetes needs the Kubernetes client: "
                "pip install 'airflow-tune-restore[kubernetes]'."
            ) from error

        return KubernetesLauncher(
            image=given["image"],
            env=given["env"],
            namespace=self.namespace,
            pod_template=self.pod_template,
            options=PodSpecOptions(python=given["python"] or "python"),
        )

    def _runtime_env(self) -> dict[str, Any]:
        runtime_env = parse_runtime_env(self.runtime_env_json or "{}")
        if self.working_dir is not None:
            runtime_env["working_dir"] = self.working_dir
        return runtime_env


def parse_runtime_env(text: str) -> dict[str, Any]:
    """Return the value of `--runtime-env-json` (InvalidInputError if it is not a JSON object)."""
    try:
        runtime_env = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"--runtime-env-json is not JSON: {error}.") from error
    if not isinstance(runtime_env, dict):
        raise InvalidInputError("--runtime-env-json is not a JSON object.")
    return runtime_env
