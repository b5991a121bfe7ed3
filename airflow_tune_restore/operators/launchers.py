"""Which launcher an operator's arguments mean: a child process of the worker, or one elsewhere."""

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.account import Account, find_account
from airflow_tune_restore.launch.local import LocalLauncher

ELSEWHERE = frozenset({"ray", "kubernetes"})
"""Launchers that start runners on other machines: nothing is asked of a worker's own Python for them."""

_PACKAGE_DIRS = frozenset({"site-packages", "dist-packages"})


def build_launcher(
    name: str,
    *,
    python: str | None = None,
    env: Mapping[str, str] | None = None,
    runner_user: str | None = None,
) -> LocalLauncher:
    """Return the launcher of this name.

    Args:
        name: `local`.
        python: Interpreter that has Ray and the user's code; the worker's own by default.
        env: Variables for the runner: credentials, and what the user gives.
        runner_user: Whom runners run as; by default as this process.

    Raises:
        InvalidInputError: If there is none of this name, or no such user that we may switch to.
    """
    if name != "local":
        known = ", ".join(["local", *sorted(ELSEWHERE)])
        raise InvalidInputError(f"launcher={name!r} is not known here; there are: {known}.")
    return LocalLauncher(
        python=python or sys.executable,
        env=dict(env or {}),
        pythonpath=user_code_paths(),
        account=runner_account(runner_user, name),
    )


def runner_account(runner_user: str | None, launcher: str) -> Account | None:
    """Return whom runners run as; None for this process's own user.

    Raises:
        InvalidInputError: If there is no such user that we may switch to, or if runners are not started
            here, where naming one would protect nothing.
    """
    if runner_user is None:
        return None
    if launcher in ELSEWHERE:
        raise InvalidInputError(
            f"runner_user={runner_user!r} is for runners on this worker (launcher='local'); with "
            f"launcher={launcher!r} they run as whoever runs things there. Leave it out."
        )
    return find_account(runner_user)


def user_code_paths() -> list[str]:
    """Return the entries of sys.path that Airflow or the user added, as the DAG bundle and plugins.

    What belongs to this interpreter is left out: the runner's may be another one.
    """
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    own = {Path(sysconfig.get_path(name)).resolve() for name in names}
    own.add(
        Path(sysconfig.get_path("scripts")).resolve()
    )  # first when `airflow` itself was started
    paths: list[str] = []
    for entry in sys.path:
        path = Path(entry or os.curdir).resolve()
        of_interpreter = _PACKAGE_DIRS & set(path.parts) or any(path.is_relative_to(o) for o in own)
        if path.is_dir() and not of_interpreter and str(path) not in paths:
            paths.append(str(path))
    return paths
