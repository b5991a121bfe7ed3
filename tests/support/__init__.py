"""What tests are made of, each thing once.

airflow/       a private Airflow for the test process, a real `airflow standalone`, contexts of tasks
experiments/   experiments: built from rows, really failed ones, the example sweep, drawn ones
records.py     what runners leave behind, written without Ray; finished_runs.py, that of thousands of them
ray/           the Ray that stays up, restores by real runners, clusters, what Ray makes of it all
kubernetes/    an API server and its node, emulated; the pods really run
storage/       servers, the suite every store passes, a proxy with faults, and one that counts
commands.py    the commands of the shell, and the one that a line calls
waiting.py     waiting for what will come
rest.py        calls of REST APIs that may be busy
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""

GOLDEN = ROOT / "tests" / "golden"
"""Experiments and error texts that real Rays wrote, kept for good."""

FAILED = GOLDEN / "failed"
"""Experiments of the newest Ray, by kind: copy them, never write to them."""

NO_SPARE_WORKERS = {"RAY_prestart_worker_first_driver": "0"}
"""Variables of each Ray. It would start a worker per CPU beforehand, which trials never use, because they
have variables of their own: a second of processor time each."""
