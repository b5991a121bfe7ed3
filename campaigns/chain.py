"""What the tasks of a chain are told, and how one ends; whoever only starts them imports no Airflow."""

from dataclasses import dataclass, field

from airflow_tune_restore.restore import follow

DONE, SKIPPED, FAILED, RETRY = "done", "skipped", "failed", "up for retry"


@dataclass(frozen=True)
class Chain:
    """What the tasks of one DAG are told.

    Args:
        experiment: Its URL.
        lease_ttl: Seconds.
        trainable: What the experiment was made with.
        env: The tasks' environment, the storage's address included.
        python: What runs the runner; None for this interpreter.
        runner_env: The runner's own variables.
        log: File the output of all steps goes to.
        strategy: How trials are run.
        quiet_seconds: How long a silent run of all trials counts as alive.
    """

    experiment: str
    lease_ttl: float
    trainable: str
    env: dict[str, str] = field(repr=False)
    python: str | None
    runner_env: dict[str, str]
    log: str
    strategy: str = "auto"
    quiet_seconds: float = follow.QUIET_SECONDS
