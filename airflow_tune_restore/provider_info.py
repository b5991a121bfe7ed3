"""What Airflow's provider manager reads of this package. It imports nothing: every process calls it."""

from typing import Any

_NAME = "Ray Tune restore"


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
            "operators.build_restore_plan",
            "operators.restore_trial",
            "operators.commit_restore",
            "operators.continue_experiment",
            "operators.restore_trial_kubernetes",
            "operators.continue_experiment_kubernetes",
        ),
        "sensors": modules("sensors.failed_experiment"),
        "hooks": modules("hooks.experiment_storage"),
        "triggers": modules("triggers.failed_experiment", "triggers.runner_pod"),
    }
