"""Code on its way to a cluster: directories zipped and named by content, as Ray's own client does.

The runner goes along as one of them, so that the cluster needs nothing but Ray and the user's code.
See ray/_private/runtime_env/packaging.py (2.60): `gcs://_ray_pkg_<hash>.zip`; a module goes with its
directory's name, a working directory without.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow_tune_restore
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.location import Location, at_home

if TYPE_CHECKING:
    from airflow_tune_restore.launch.ray_jobs import RayJobs

MAX_PACKAGE_BYTES = 500 * 1024**2
"""What a cluster takes at most (GCS_STORAGE_MAX_SIZE, 2.60)."""

RUNNER_ROOMS = ("experiments", "restore", "runner", "storage")
"""The rooms a runner imports; exceptions.py beside them."""

_IGNORE_FILES = (".gitignore", ".rayignore")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""No file times: the same content is the same package."""


@dataclass(frozen=True, slots=True)
class Package:
    """A zip file, named by its content; or a wheel, whose name pip reads."""

    body: bytes = field(repr=False)
    wheel: str = ""

    @property
    def name(self) -> str:
        """Return its name in the cluster's store."""
        return self.wheel or f"_ray_pkg_{hashlib.sha256(self.body).hexdigest()[:32]}.zip"

    @property
    def uri(self) -> str:
        """Return what a runtime_env says of it."""
        return f"gcs://{self.name}"


def runner_package() -> Package:
    """Zip what a runner needs of this package."""
    home = Path(airflow_tune_restore.__path__[0])
    files = [home / "__init__.py", home / "exceptions.py"]
    for room in RUNNER_ROOMS:
        files += sorted((home / room).rglob("*.py"))
    return _zip((f"{home.name}/{path.relative_to(home).as_posix()}", path) for path in files)


def directory_package(directory: Path, excludes: Sequence[str] = (), *, is_module: bool) -> Package:
    """Zip a directory, without what `excludes`, .gitignore and .rayignore name."""
    prefix = f"{directory.name}/" if is_module else ""
    is_excluded = _matcher(directory, excludes)
    files = _walk(directory, [is_excluded])
    return _zip((prefix + path.relative_to(directory).as_posix(), path) for path in files)


def deliver(jobs: "RayJobs", runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Upload the local parts of a runtime_env, and the runner, and return it with their URIs.

    Raises:
        InvalidInputError: If a path does not exist, or is no directory, wheel or zip file.
        RayClusterError: If the cluster does not take them.
    """
    given = {name: value for name, value in runtime_env.items() if value is not None}
    excludes = given.pop("excludes", ())

    def uri(path: str, *, is_module: bool) -> str:
        if Location.parse(path).scheme:
            return path
        return _upload(jobs, _package(at_home(path), excludes, is_module=is_module))

    if "working_dir" in given:
        given["working_dir"] = uri(str(given["working_dir"]), is_module=False)
    modules = [uri(str(path), is_module=True) for path in given.get("py_modules", ())]
    given["py_modules"] = [*modules, _upload(jobs, runner_package())]
    return given


def _upload(jobs: "RayJobs", package: Package) -> str:
    if len(package.body) > MAX_PACKAGE_BYTES:
        raise InvalidInputError(
            f"A package of {len(package.body) / 1024**2:.0f} MiB is more than a Ray cluster takes "
            f"({MAX_PACKAGE_BYTES // 1024**2} MiB). Leave data out of it: `excludes` in the runtime_env, "
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


def _walk(directory: Path, excluded: list[Callable[[Path], bool]]) -> Iterator[Path]:
    rules = list(excluded)
    for name in _IGNORE_FILES:
        if (directory / name).is_file():
            rules.append(_matcher(directory, (directory / name).read_text().splitlines()))
    for path in sorted(directory.iterdir()):
        if path.name == "__pycache__" or any(rule(path) for rule in rules):
            continue
        if path.is_dir():
            yield from _walk(path, rules)
        elif path.is_file():
            yield path


def _matcher(directory: Path, lines: Sequence[str]) -> Callable[[Path], bool]:
    from pathspec import (
        GitIgnoreSpec,  # comes with Airflow; needed only where there is something to match
    )

    spec = GitIgnoreSpec.from_lines(lines)
    return lambda path: spec.match_file(
        path.relative_to(directory).as_posix() + ("/" if path.is_dir() else "")
    )


def _zip(files: Any) -> Package:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(entry, path.read_bytes())
    return Package(buffer.getvalue())
