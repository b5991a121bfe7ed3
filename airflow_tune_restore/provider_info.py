"""Metadata for Airflow's provider manager. It imports nothing, because every process calls it."""

from typing import Any

_NAME = "Ray Tune restore"


def _field(label: str, kind: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "label": label,
        "description": description,
        "schema": {"type": [kind, "null"], **schema},
    }


_RAY_JOBS: dict[str, Any] = {
    "connection-type": "ray_jobs",
    "hook-class-name": "airflow_tune_restore.hooks.ray_jobs.RayJobsHook",
    "hook-name": "Ray Jobs",
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "login"],
        "relabeling": {"host": "Dashboard address", "password": "Token"},
        "placeholders": {"host": "http://ray-head:8265"},
    },
    "conn-fields": {
        "verify_tls": _field("Verify TLS", "boolean", "Check the certificate.", default=True),
        "ca_file": _field("CA file", "string", "On workers and triggerers; trusted as well."),
        "runtime_env": _field(
            "Runtime env",
            "string",
            "Of jobs, as JSON; no secrets, Ray shows it.",
            format="multiline",
        ),
        "entrypoint_num_cpus": _field(
            "Driver CPUs", "number", "What a driver asks for; 0 if empty."
        ),
        "entrypoint_memory": _field("Driver memory", "integer", "Bytes; 512 MiB if empty."),
        "entrypoint_resources": _field(
            "Driver resources", "string", "Custom resources, as JSON.", format="multiline"
        ),
    },
}
"""Written by hand where most would import the hook: every process of Airflow reads this."""


def _option(
    kind: str, default: str, example: str | None, description: str, **more: bool
) -> dict[str, Any]:
    return {
        **more,
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }


_CONFIG: dict[str, Any] = {
    "tune_restore": {
        "description": "The page *Browse > Tune experiments*, and the tabs *Tune restore*.",
        "options": {
            "prefixes": _option(
                "string",
                "",
                '{"team sweeps": "s3://connection_id@bucket/sweeps"}',
                "Where the page looks for experiments: a JSON object of labels, which the page shows, "
                "and addresses as in DAGs.",
            ),
            "recovery_dag_id": _option(
                "string",
                "nightly_recovery",
                None,
                "Who may read runs of this DAG may see the page. Who may start them may release "
                "trials, undo commits, and restore an experiment, which starts a run of it.",
            ),
            "cache_seconds": _option(
                "integer",
                "30",
                None,
                "How many seconds the page shows a list before it looks again.",
            ),
            "stale_after": _option(
                "integer",
                "1800",
                None,
                "After how many seconds of silence an unfinished experiment counts as dead.",
            ),
        },
    },
    "ray_executor": {
        "description": "RayExecutor, which runs tasks as jobs of a Ray cluster.",
        "options": {
            "ray_conn_id": _option(
                "string",
                "",
                "ray_jobs_default",
                "The connection of type ray_jobs to the cluster. Set either this or address.",
            ),
            "address": _option(
                "string", "", "http://ray-head:8265", "The dashboard of the cluster."
            ),
            "token": _option(
                "string",
                "",
                None,
                "The cluster's token, if address is set and the cluster asks for one.",
                sensitive=True,
            ),
            "verify_tls": _option(
                "boolean", "True", None, "Whether the certificate of address is checked."
            ),
            "ca_file": _option(
                "string",
                "",
                "/etc/ssl/ray-ca.pem",
                "Certificates that are trusted for address as well: a file of the scheduler and the "
                "api-server.",
            ),
            "runtime_env": _option(
                "string",
                "",
                '{"env_vars": {"MODE": "night"}}',
                "The runtime_env of all jobs, as JSON; no secrets, Ray shows it. That of a task is put "
                "over it, variable by variable.",
            ),
            "num_cpus": _option(
                "float",
                "1",
                None,
                "How many CPUs the job of a task asks for, if its executor_config names none.",
            ),
            "poll_interval": _option(
                "float", "2", None, "How many seconds pass between two looks at the jobs."
            ),
            "delete_jobs": _option(
                "boolean", "True", None, "Whether jobs that succeeded are deleted from Ray's list."
            ),
        },
    },
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider metadata (airflow's provider_info.schema.json)."""

    def modules(*names: str) -> list[dict[str, Any]]:
        return [
            {
                "integration-name": _NAME,
                "python-modules": [f"airflow_tune_restore.{name}" for name in names],
            }
        ]

    return {
        "package-name": "airflow-tune-restore",
        "name": _NAME,
        "description": "Brings failed Ray Tune experiments back: one Airflow task per resumed trial.",
        "integrations": [
            {
                "integration-name": _NAME,
                "external-doc-url": "https://docs.ray.io/en/latest/tune/",
                "tags": ["software"],
            }
        ],
        "operators": modules(
            "operators.preview_restore",
            "operators.approve_restores",
            "operators.build_restore_plan",
            "operators.restore_trial",
            "operators.commit_restore",
            "operators.continue_search",
            "operators.run_tune_sweep",
            "operators.kubernetes.restore_trial",
            "operators.kubernetes.continue_search",
            "operators.kubernetes.run_tune_sweep",
            "operators.check_restores",
            "operators.repeat_run",
            "operators.list_quarantine",
            "operators.release_trial",
            "operators.undo_commit",
        ),
        "sensors": modules("sensors.failed_experiment"),
        "hooks": modules("hooks.experiment_storage", "hooks.ray_jobs"),
        "notifications": [
            "airflow_tune_restore.notifications.trigger_recovery.TriggerRecoveryNotifier"
        ],
        "triggers": modules(
            "triggers.experiment_sensor",
            "triggers.failed_experiment",
            "triggers.ray_job",
            "triggers.runner_pod",
        ),
        "executors": ["airflow_tune_restore.executors.ray_executor.RayExecutor"],
        "extra-links": ["airflow_tune_restore.links.ray_job.RayJobLink"],
        "connection-types": [_RAY_JOBS],
        "config": _CONFIG,
        "cli": ["airflow_tune_restore.plugin.commands.get_commands"],  # since Airflow 3.2
    }
