"""Makes the screenshots of docs/page.md, and prints how long the page takes.

`python docs/screenshots/make.py` runs `airflow standalone`, SeaweedFS with 300 experiments, Ray and a
headless Chromium. A sweep that really failed is restored from the page. `--airflow 3.1.8` takes another
Airflow, and writes no pictures.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.matrix.environments import airflow_python  # noqa: E402
from tests.support.airflow.site import (  # noqa: E402
    LABEL,
    PREFIX,
    RECOVERY,
    Site,
    site,
    upload_sweep,
)
from tests.support.browser import chromium  # noqa: E402
from tests.support.experiments.many import LARGE, fill  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

HERE = Path(__file__).parent
SIZE = {"width": 1280, "height": 800}
SWEEP = "errored"
RUNS = 5


def main() -> None:
    """Start everything, and walk through the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--airflow", help="a release, such as 3.1.8; by default that of uv.lock")
    release = parser.parse_args().airflow
    python = airflow_python(release) if release else sys.executable
    with (
        tempfile.TemporaryDirectory() as home,
        site(Path(home), python=python) as running,
        chromium() as browser,
    ):
        fill(running.server, PREFIX)
        upload_sweep(running.server, SWEEP, Path(home))
        measure(running, browser)
        if not release:
            take_pictures(running, browser)


def measure(running: Site, browser: "Browser") -> None:
    """Print the seconds until rows are seen, and the bytes of all answers, cold and then warm."""
    page = running.log_in(browser, "reader", viewport=SIZE)
    large = f"?view=experiment&prefix={LABEL}&path={LARGE}"
    for what, query, rows in [
        ("300 experiments", "?view=experiments", "#experiments tbody tr"),
        ("5,000 trials", large, "#trials tbody tr"),
        ("50 curves of 5,000 trials", f"{large}&tab=curves&top=50", "#curve-values tbody tr"),
    ]:
        figures = [visit(page, f"{running.base}/tune_restore/{query}", rows) for _ in range(RUNS)]
        warm = min(seconds for seconds, _ in figures[1:])
        print(
            f"{what}: {figures[0][0]:.2f} s at first, {warm:.2f} s warm (best of {RUNS - 1}), "
            f"{figures[-1][1]:,} bytes of JSON",
            flush=True,
        )


def visit(page: "Page", address: str, rows: str) -> tuple[float, int]:
    """Return the seconds from the click until rows are there, and the bytes of the JSON they took."""
    sizes: list[int] = []

    def add(response: object) -> None:
        if "/api/" in response.url:  # type: ignore[attr-defined]
            sizes.append(len(response.body()))  # type: ignore[attr-defined]

    page.goto("about:blank")
    began = monotonic()
    page.goto(address)
    page.locator(rows).first.wait_for()
    seconds = monotonic() - began
    page.on("response", add)
    page.reload()
    page.locator(rows).first.wait_for()
    page.remove_listener("response", add)
    return seconds, sum(sizes)


def take_pictures(running: Site, browser: "Browser") -> None:
    """Walk from the menu to a restored experiment."""
    page = running.log_in(browser, "oncall", viewport=SIZE)
    page.get_by_text("Browse", exact=True).first.click()
    page.get_by_text("Tune experiments", exact=True).first.click()
    frame = page.frame_locator("iframe")
    frame.locator("#scanned", has_text="listed").wait_for()
    in_both_themes(page, "experiments")
    frame.locator("#filter-text").fill("resnet_5000")
    frame.get_by_role("link", name="resnet_5000").click()
    frame.locator("#trials tbody tr").first.wait_for()
    save(page, "trials")
    restore(running, page, frame)


def restore(running: Site, page: "Page", frame: "FrameLocator") -> None:
    """Restore the sweep from the page, and show the plan, the restore at work, and the result."""
    running.airflow.unpause(RECOVERY)
    frame.get_by_role("link", name="Tune experiments").click()
    frame.locator("#filter-text").fill(SWEEP)
    frame.get_by_role("link", name=SWEEP, exact=True).click()
    frame.get_by_role("tab", name="Plan").click()
    frame.locator("#plan tbody tr").first.wait_for()
    save(page, "plan")
    frame.locator("[data-action=restore-now]").first.click()
    save(page, "restore_now")
    frame.get_by_role("button", name="Start the DAG run").click()
    frame.locator("dialog", has_text="Started").wait_for()
    (run,) = running.airflow.runs(RECOVERY)
    with alone(page) as tab:
        tab.goto(f"{running.base}/dags/{RECOVERY}/runs/{run['dag_run_id']}/plugin/tune-restore-run")
        inside = tab.frame_locator("iframe")
        while not inside.locator("#progress tbody tr", has_text="running").count():
            tab.wait_for_timeout(500)
            if inside.get_by_text("planned no restore").count():
                tab.reload()
            if running.airflow.state(RECOVERY, run["dag_run_id"]) == "success":
                break
        save(tab, "live")
    running.airflow.finish(RECOVERY, run["dag_run_id"])
    frame.get_by_role("button", name="Close").click()
    frame.get_by_role("button", name="Read again").click()
    frame.get_by_role("tab", name="Curves").click()
    frame.locator("#chart canvas").wait_for()
    in_both_themes(page, "curves")
    frame.get_by_role("tab", name="Restores").click()
    frame.locator("#changes tbody tr").first.wait_for()
    save(page, "restores")
    frame.get_by_role("tab", name="Evidence").click()
    frame.get_by_role("tabpanel").get_by_text("indicates", exact=False).first.wait_for()
    save(page, "evidence")


@contextlib.contextmanager
def alone(page: "Page") -> Iterator["Page"]:
    """Yield a second page of the same user."""
    other = page.context.new_page()
    yield other
    other.close()


def in_both_themes(page: "Page", name: str) -> None:
    """Save a picture in Airflow's light theme, and one in its dark theme."""
    save(page, name)
    page.evaluate("document.documentElement.className = 'dark'")
    save(page, f"{name}_dark")
    page.evaluate("document.documentElement.className = 'light'")


def save(page: "Page", name: str) -> None:
    """Save what is seen, once it has settled."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(700)  # transitions; a picture asserts nothing
    page.screenshot(path=HERE / f"{name}.png")
    print(f"docs/screenshots/{name}.png", flush=True)


if __name__ == "__main__":
    main()
