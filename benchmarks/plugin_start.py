"""What the plugin, and the commands of `airflow tune-restore`, cost each process of Airflow at its start.

    uv run python benchmarks/plugin_start.py [--runs 9]

Each run is a process that has what Airflow imports by itself: its plugin manager, or its CLI. Timed is
the import of our module, with what Airflow then calls in it. Medians and slowest runs, in milliseconds.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_PROCESS = """
import sys, time
import {before}
started = time.perf_counter()
from airflow_tune_restore.plugin.{module} import {name}
{name}()
print("COST", 1000 * (time.perf_counter() - started))
"""

PARTS = {
    "plugin": ("airflow.plugins_manager", "plugin", "TuneRestorePlugin"),
    "commands": ("airflow.cli.cli_config", "commands", "get_commands"),
}


def measure(before: str, module: str, name: str) -> float:
    """Return the milliseconds of one process."""
    code = _PROCESS.format(before=before, module=module, name=name)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout.rpartition("COST")[2])


def main() -> None:
    """Print a line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    for part, how in PARTS.items():
        costs = [measure(*how) for _ in range(runs)]
        print(f"{part:10} {statistics.median(costs):6.2f} ms, at most {max(costs):.2f} ms")


if __name__ == "__main__":
    main()
