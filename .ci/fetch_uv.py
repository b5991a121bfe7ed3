"""Unpacks uv's wheel from PyPI into a directory, for a Python that has neither venv nor pip."""

import io
import json
import platform
import stat
import sys
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urljoin

INDEX = "https://pypi.org/pypi/uv/json"


def main(target: Path) -> None:
    """Fetch the newest wheel for this machine."""
    with urllib.request.urlopen(INDEX, timeout=60) as answer:
        files = json.load(answer)["urls"]
    system = "macosx" if sys.platform == "darwin" else "manylinux"
    machine = platform.machine().replace("aarch64", "arm64" if system == "macosx" else "aarch64")
    (wheel,) = [f for f in files if f["filename"].endswith(".whl")
                and system in f["filename"] and machine in f["filename"]][:1]  # fmt: skip
    with urllib.request.urlopen(urljoin(INDEX, wheel["url"]), timeout=300) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    (member,) = [name for name in archive.namelist() if name.endswith("/scripts/uv")]
    target.mkdir(parents=True, exist_ok=True)
    program = target / "uv"
    program.write_bytes(archive.read(member))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
