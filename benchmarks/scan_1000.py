"""A scan of many experiments on a real S3 server, beside other ways to ask it the same.

    uv run python benchmarks/scan_1000.py [--experiments 1000] [--objects 50] [--runs 3]

SeaweedFS is started and filled with experiments of real rows (tests/golden) in `team/user/experiment`:
nine in ten ended well, one in twenty with an error, one in twenty runs. All ways are run in turn (A B C …
A B C …) in this process; medians are shown, wall and processor time. What each scan asks of the server
is counted by a proxy in a pass of its own, without a clock.

The bound is `curl --parallel` with signed addresses of the same listings and gets, to /dev/null.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from airflow_tune_restore.experiments.scan import THREADS, scan  # noqa: E402
from airflow_tune_restore.protocol import layout  # noqa: E402
from airflow_tune_restore.storage.fs import open_store  # noqa: E402
from tests.support.storage.proxy import Fault, Proxy  # noqa: E402
from tests.support.storage.servers import Server, s3_server  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "ray-2.60.0" / "killed"
PREFIX = "sweeps"


def make_state(status: str) -> bytes:
    """Return the golden state with all its trials, which ran side by side, in one status."""
    state = json.loads(next(GOLDEN.glob("experiment_state-*")).read_text())
    for number, row in enumerate(state["trial_data"]):
        trial, run = map(json.loads, row)
        run |= {"start_time": 1000.0 + number, "last_result_time": 2000.0 + number}
        run["last_result"]["done"] = status == "TERMINATED"
        row[:] = json.dumps({**trial, "status": status}, indent=2), json.dumps(run, indent=2)
    return json.dumps(state).encode()


def fill(server: Server, experiments: int, objects: int) -> list[str]:
    """Put the experiments there, and return their roots."""
    from obstore.store import S3Store

    client = S3Store(
        server.bucket, endpoint=server.endpoint, client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )  # fmt: skip
    states = {status: make_state(status) for status in ("TERMINATED", "ERROR", "RUNNING")}
    name = next(GOLDEN.glob("experiment_state-*")).name
    roots = [f"{PREFIX}/team{n % 7}/user{n % 5}/exp{n:05d}" for n in range(experiments)]

    async def put_all() -> None:
        gate = asyncio.Semaphore(64)

        async def put(key: str, body: bytes) -> None:
            async with gate:
                await client.put_async(key, body)

        for start in range(0, experiments, 100):
            jobs = []
            for root in roots[start : start + 100]:
                for kind in ("tuner.pkl", next(GOLDEN.glob("basic-variant-state-*")).name):
                    jobs.append(put(f"{root}/{kind}", (GOLDEN / kind).read_bytes()))
                for extra in range(objects - 3):
                    trial, file = extra % 5, extra // 5
                    jobs.append(put(f"{root}/trial_{trial}/checkpoint_{file:06d}/model", b"x"))
            await asyncio.gather(*jobs)
        jobs = []  # after every tuner.pkl, as Ray writes them
        for number, root in enumerate(roots):
            status = {0: "ERROR", 1: "RUNNING"}.get(number % 20, "TERMINATED")
            jobs.append(put(f"{root}/{name}", states[status]))
        await asyncio.gather(*jobs)

    asyncio.run(put_all())
    return roots


def newest(names: list[str]) -> str:
    """Return the newest state among names or keys."""
    return max(name for name in names if f"{layout.STATE_PREFIX}" in name)


def ways(server: Server, roots: list[str], scratch: Path) -> dict[str, Callable[[], Any]]:
    """Return what is compared, by name; each asks for all experiments."""
    import s3fs
    from pyarrow.fs import FileSelector, S3FileSystem

    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    arrow = S3FileSystem(
        endpoint_override=server.endpoint.partition("://")[2], scheme="http", region="us-east-1"
    )
    plain, bulk = open_store(server.url), open_store(server.url, in_bulk=True)

    def by_store(store: Any) -> Callable[[str], int]:
        def one(root: str) -> int:
            at = store.at(root)
            return len(at.get(newest([entry.name for entry in at.list_dir()])))

        return one

    def by_arrow(root: str) -> int:
        found = arrow.get_file_info(FileSelector(f"{server.bucket}/{root}"))
        with arrow.open_input_stream(newest([info.path for info in found])) as stream:
            return len(stream.read())

    def at_once(one: Callable[[str], int]) -> Callable[[], Any]:
        def run() -> list[int]:
            with ThreadPoolExecutor(THREADS) as threads:
                return list(threads.map(one, roots))

        return run

    def recursive() -> None:
        by_root: dict[str, list[str]] = {}
        for key in fs.find(f"{server.bucket}/{PREFIX}"):
            root, _, name = key.rpartition("/")
            if name.startswith(layout.STATE_PREFIX):
                by_root.setdefault(root, []).append(key)
        fs.cat([newest(keys) for keys in by_root.values()])

    stale = timedelta(minutes=30)
    return {
        "scan, cold": lambda: scan(bulk.at(PREFIX), stale_after=stale, use_index=False),
        "scan, warm": lambda: scan(bulk.at(PREFIX), stale_after=stale),
        "2 requests each, obstore": at_once(by_store(bulk)),
        "2 requests each, s3fs": at_once(by_store(plain)),
        "2 requests each, pyarrow": at_once(by_arrow),
        "one by one, s3fs": lambda: [by_store(plain)(root) for root in roots],
        "recursive listing, s3fs": recursive,
        "bound: curl": bound(server, roots, scratch),
    }


def bound(server: Server, roots: list[str], scratch: Path) -> Callable[[], Any]:
    """Return what asks for the same listings and states as fast as the server can answer."""
    import s3fs

    signing = {"signature_version": "s3v4"}  # for listings the server takes no other
    client = s3fs.S3FileSystem(skip_instance_cache=True, config_kwargs=signing).s3
    state = next(GOLDEN.glob("experiment_state-*")).name

    async def sign() -> list[str]:
        urls = []
        for root in roots:
            bucket = {"Bucket": server.bucket}
            asked = {**bucket, "Prefix": f"{root}/", "Delimiter": "/"}
            urls.append(await client.generate_presigned_url("list_objects_v2", asked, 86400))
            asked = {**bucket, "Key": f"{root}/{state}"}
            urls.append(await client.generate_presigned_url("get_object", asked, 86400))
        return urls

    from fsspec.asyn import get_loop, sync

    config = scratch / "urls"
    lines = [f'url="{url}"\noutput="/dev/null"\n' for url in sync(get_loop(), sign)]
    config.write_text("".join(lines))
    command = [
        "curl",
        "--silent",
        "--fail",
        "--parallel",
        "--parallel-max",
        str(THREADS),
        "--globoff",
    ]
    return lambda: subprocess.run(
        [*command, "--config", str(config)], check=True, stderr=subprocess.DEVNULL
    )


def count(server: Server) -> None:
    """Print what a cold, a first remembering and a warm scan ask of the server."""
    kinds = {
        "listings": r"^GET .*list-type",
        "states": r"^GET [^?]*experiment_state-",
        "searcher states": r"^GET [^?]*basic-variant-state-",
        "index": rf"^GET [^?]*{layout.INDEX}",
        "puts": r"^PUT ",
        "all": r"",
    }
    with Proxy(server.endpoint) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        for name, use_index in (("cold", False), ("remembering", True), ("warm", True)):
            proxy.heal()
            counters = {
                kind: proxy.add(Fault("delay", pattern, nth=10**9))
                for kind, pattern in kinds.items()
            }
            scan(open_store(server.url, in_bulk=True).at(PREFIX), use_index=use_index)
            seen = ", ".join(f"{fault.seen} {kind}" for kind, fault in counters.items())
            print(f"requests, {name}: {seen}")
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint


def main() -> None:
    """Run the benchmark and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=50, help="of each experiment")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with s3_server() as server, tempfile.TemporaryDirectory() as scratch:
        os.environ |= server.env
        roots = fill(server, options.experiments, options.objects)
        print(f"{len(roots)} experiments, {len(roots) * options.objects} objects")
        count(server)
        figures: dict[str, list[tuple[float, float]]] = {}
        compared = ways(server, roots, Path(scratch))
        for run in range(options.runs + 1):
            for name, way in compared.items():
                wall, cpu = time.monotonic(), time.process_time()
                way()
                if run:  # the first one makes connections and fills the server's caches
                    figures.setdefault(name, []).append(
                        (time.monotonic() - wall, time.process_time() - cpu)
                    )
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in figures.items()
    }
    cold = medians["scan, cold"][0]
    for name, (wall, cpu) in medians.items():
        print(f"{name:26} {wall:6.2f} s  {cpu:6.2f} s cpu  {wall / cold:6.2f} of a cold scan")
    print(f"load {os.getloadavg()[0]:.1f}; medians of {options.runs}")


if __name__ == "__main__":
    main()
