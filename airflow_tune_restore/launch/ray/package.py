"""Packs code for a cluster: directories as zip files named by their content, as Ray's own client does.

The runner is packed, too, so that the cluster needs only Ray and the user's code. The format is that of
ray/_private/runtime_env/packaging.py (2.60): `gcs://_ray_pkg_<hash>.zip`; a module keeps the name of its
directory, a working directory does not.

As in Ray, `.gitignore` counts unless `RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1`, and `.git` and virtual
environments are left out (`RAY_RUNTIME_ENV_DEFAULT_EXCLUDES`, ray_constants.py). Everyone who may use the
cluster can read the packages. So these are left out of modules, too, and so are credentials and the
targets of links out of the directory. A warning names them.

`excludes=["!name"]` packs one of them after all. In Ray, a `!` has an effect within one list only,
because each list is applied by itself (`_dir_travel`). Here a `!` in `excludes` counts last, as at the
end of a `.gitignore`. As in git, nothing is packed from a directory that is itself left out.
"""

import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import airflow_tune_restore
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.protocol.names import is_text
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.storage.location import Location, at_home

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

    from airflow_tune_restore.launch.ray.jobs_api import RayJobs

_Rules: TypeAlias = "list[tuple[Path, GitIgnoreSpec]]"
"""Ignore files: their directories and patterns."""

MAX_PACKAGE_BYTES = 500 * 1024**2
"""Limit of a cluster (GCS_STORAGE_MAX_SIZE, 2.60)."""

RUNNER_ROOMS = ("protocol", "runner", "storage")
"""Subpackages that a runner imports, beside exceptions.py."""

CACHES = "__pycache__"
"""Left out without a warning."""

RAY_EXCLUDES = f".git,.venv,venv,{CACHES}"
"""Names that Ray leaves out, unless RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES is set (2.60)."""

CREDENTIALS = (".env", ".env.*", ".netrc", ".git-credentials", ".pypirc", ".aws", ".ssh")
"""Names under which tools look for credentials, and for little else.

Not `*.pem`: those may be certificates that a job needs. A private key is recognised by its first line.
"""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""All files have the same time, so that the same content is the same package."""

_SHOWN = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Package:
    """A zip file, named by its content; or a wheel, whose name pip reads.

    `left_out` has the paths that are not in it although the user did not exclude them, by reason.
    """

    body: bytes = field(repr=False)
    wheel: str = ""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the cluster's store."""
        return self.wheel or f"_ray_pkg_{hashlib.sha256(self.body).hexdigest()[:32]}.zip"

    @property
    def uri(self) -> str:
        """Its URI for a runtime_env."""
        return f"gcs://{self.name}"


def runner_package() -> Package:
    """Zip the part of this package that a runner needs."""
    home = Path(airflow_tune_restore.__path__[0])
    files = [home / "__init__.py", home / "exceptions.py"]
    for room in RUNNER_ROOMS:
        files += sorted((home / room).rglob("*.py"))
    return _zip((path.relative_to(home.parent).as_posix(), path) for path in files)


def directory_package(directory: Path, excludes: Sequence[str] = (), *, is_module: bool) -> Package:
    """Zip a directory, without what `excludes`, .gitignore, .rayignore and this module leave out.

    Raises:
        InvalidInputError: If a file cannot be read, or a pattern is not valid.
    """
    home = directory.parent if is_module else directory
    tree = _Tree(directory, excludes)
    try:
        package = _zip((path.relative_to(home).as_posix(), path) for path in tree.files())
    except OSError as error:
        raise InvalidInputError(
            f"{error.filename} cannot be packed for the cluster: {error.strerror}. Name it in `excludes` "
            "of the runtime_env, or in a .rayignore."
        ) from error
    return replace(package, left_out=tree.left_out)


def deliver(jobs: "RayJobs", runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Upload the local parts of a runtime_env, and the runner, and return it with their URIs.

    Raises:
        InvalidInputError: If a part has a wrong type, or a path is not an existing directory, wheel or
            zip file.
        RayClusterError: If the cluster is out of reach.
    """
    given = {name: value for name, value in runtime_env.items() if value is not None}
    check_types(given)
    excludes = given.pop("excludes", ())

    def uri(path: str, *, is_module: bool) -> str:
        if Location.parse(path).scheme:
            return path
        package = _package(at_home(path), excludes, is_module=is_module)
        if package.left_out:
            _warn(path, package.left_out)
        return _upload(jobs, package)

    if "working_dir" in given:
        given["working_dir"] = uri(str(given["working_dir"]), is_module=False)
    modules = [uri(str(path), is_module=True) for path in given.get("py_modules", ())]
    given["py_modules"] = [*modules, _upload(jobs, runner_package())]
    return given


def check_types(runtime_env: Mapping[str, Any]) -> None:
    """Raise InvalidInputError for a part that the cluster would refuse, before anything is uploaded."""

    def refuse(name: str, expected: str) -> NoReturn:
        shown = printable(repr(runtime_env[name]))
        raise InvalidInputError(f"{name}={shown} in the runtime_env is not {expected}.")

    working_dir = runtime_env.get("working_dir", ".")
    if not (isinstance(working_dir, str | os.PathLike) and str(working_dir)):
        refuse("working_dir", "a directory or URI")
    for name, what in {"excludes": "patterns", "py_modules": "directories, wheels or URIs"}.items():
        listed = runtime_env.get(name, [])
        if not isinstance(listed, list | tuple) or not all(
            isinstance(item, str | os.PathLike) and str(item) for item in listed
        ):
            refuse(name, f"a list of {what}")
    variables = runtime_env.get("env_vars", {})
    if not isinstance(variables, Mapping) or not all(
        isinstance(text, str) for item in variables.items() for text in item
    ):  # their values are not shown: they may be secrets
        raise InvalidInputError("env_vars in the runtime_env is not an object of strings.")


def _warn(directory: str, left_out: Mapping[str, Sequence[str]]) -> None:
    """Log what was left out of a directory, and how to pack it."""
    groups = []
    for why, names in left_out.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        groups.append(f"{', '.join(printable(name) for name in names[:_SHOWN])}{more} ({why})")
    logger.warning(
        "Not sent to the cluster from %s: %s. To send one of them, put its path with a leading ! into "
        'the runtime_env: "excludes": ["!.env"]; without the !, it is left out without this warning.',
        *(printable(directory), "; ".join(groups)),
    )


def _upload(jobs: "RayJobs", package: Package) -> str:
    if len(package.body) > MAX_PACKAGE_BYTES:
        raise InvalidInputError(
            f"A package of {len(package.body) / 1024**2:.0f} MiB is larger than a Ray cluster accepts "
            f"({MAX_PACKAGE_BYTES // 1024**2} MiB). Leave out data: `excludes` in the runtime_env, "
            "or a .rayignore."
        )
    if not jobs.has_package(package.name):
        jobs.upload_package(package.name, package.body)
    return package.uri


def _package(path: Path, excludes: Sequence[str], *, is_module: bool) -> Package:
    if path.is_dir():
        return directory_package(path.resolve(), excludes, is_module=is_module)
    if path.is_file() and path.suffix in (".zip", ".whl"):
        return Package(path.read_bytes(), path.name if path.suffix == ".whl" else "")
    raise InvalidInputError(
        f"{path} in the runtime_env is neither a directory, a .whl or a .zip on this worker, nor a URI."
    )


class _Tree:
    """A directory that is packed, and what is left out of it."""

    def __init__(self, top: Path, excludes: Sequence[str]) -> None:
        self._top = top
        self._real = os.path.realpath(top)
        of_ray = os.environ.get("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", RAY_EXCLUDES)
        names = filter(None, map(str.strip, of_ray.split(",")))
        unasked = dict.fromkeys(names, "as Ray leaves it out")
        unasked |= dict.fromkeys(CREDENTIALS, "may hold credentials")
        self._whys = list(unasked.values())
        self._spec = _spec([*unasked, *excludes], "excludes in the runtime_env")
        self.left_out: dict[str, list[str]] = {}

    def files(self) -> Iterator[Path]:
        """Yield the files that are packed, in the order of their names."""
        return self._walk(self._top, [], [])

    def _walk(self, directory: Path, rules: _Rules, above: list[str]) -> Iterator[Path]:
        rules = [*rules, *_ignore_files(directory)]
        above = [*above, os.path.realpath(directory)]
        for path in sorted(directory.iterdir()):
            # of pathlib, is_dir and is_file raise for links with absurd targets (Python 3.11)
            is_directory = os.path.isdir(path)  # noqa: PTH112
            if not is_directory and not os.path.isfile(path):  # noqa: PTH113
                continue  # a link to nothing or to itself, a pipe, a socket, a device
            if self._is_left_out(path, rules, above, is_directory=is_directory):
                continue
            if is_directory:
                yield from self._walk(path, rules, above)
            else:
                yield path

    def _is_left_out(
        self, path: Path, rules: _Rules, above: Sequence[str], *, is_directory: bool
    ) -> bool:
        """Whether a path is left out: excluded, or of a kind that is packed only if it is asked for."""
        name = path.relative_to(self._top).as_posix()
        slash = "/" * is_directory
        verdict = self._spec.check_file(name + slash)
        is_asked_for = verdict.include is False
        if not is_asked_for and any(
            spec.match_file(path.relative_to(base).as_posix() + slash) for base, spec in rules
        ):
            return True
        named = verdict.index if verdict.include else None
        if named is not None and named >= len(self._whys):
            return True
        real = os.path.realpath(path)
        if is_directory and real in above:
            why = "a link back"  # endless, whatever is asked for
        elif not is_text(path.name):
            why = "no zip file can hold its name"
        elif is_asked_for:
            return False
        elif named is not None:
            why = "" if path.name == CACHES else self._whys[named]
        elif path.is_symlink() and not Path(real).is_relative_to(self._real):
            why = "a link out of it"
        else:
            why = _kind_left_out(path, is_directory=is_directory)
            if not why:
                return False
        if why:
            self.left_out.setdefault(why, []).append(name)
        return True


def _kind_left_out(path: Path, *, is_directory: bool) -> str:
    """Return why a path is left out, by its content; "" if it is packed."""
    if is_directory:
        return "a virtual environment" if (path / "pyvenv.cfg").is_file() else ""
    with path.open("rb") as file:
        first = file.read(64)
    return "a private key" if first.startswith(b"-----BEGIN ") and b"PRIVATE KEY" in first else ""


def _ignore_files(directory: Path) -> _Rules:
    names = [".gitignore", ".rayignore"]
    if os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1":
        names.remove(".gitignore")
    rules = []
    for file in (directory / name for name in names):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            rules.append((directory, _spec(lines, file.as_posix())))
    return rules


def _spec(lines: Sequence[str], where: str) -> "GitIgnoreSpec":
    from pathspec import GitIgnoreSpec  # needed only where there is something to pack

    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise InvalidInputError(f"{where}: {str(error).rstrip('.')}.") from error


def _zip(files: Any) -> Package:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(entry, path.read_bytes())
    return Package(buffer.getvalue())
