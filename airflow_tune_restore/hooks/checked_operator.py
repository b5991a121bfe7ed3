"""The base of operators whose literals are checked when the DAG is parsed."""

from collections.abc import Mapping
from typing import Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_tune_restore.arguments import parse_addresses
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.hooks.literals import check_literals, is_computed
from airflow_tune_restore.storage.fs import check_scheme
from airflow_tune_restore.storage.location import Location


class CheckedOperator(BaseOperator):
    """Refuses literals that are not valid when the DAG is parsed, whether the task is mapped or not."""

    needs_trainable: ClassVar[bool] = True
    """Whether `trainable=None` is refused."""

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Set the arguments that all mapped tasks share."""
        cls.check_literals(kwargs)
        return super().partial(**kwargs)

    @classmethod
    def check_literals(cls, values: Mapping[str, Any]) -> None:
        """Check the arguments that Airflow does not compute when the task runs.

        Raises:
            InvalidInputError: If one is not valid. Airflow shows it as an import error of the DAG.
        """
        check_literals(values, cls.template_fields)
        has_none = values.get("trainable", "") is None and not values.get("recipes")
        if cls.needs_trainable and has_none:
            raise InvalidInputError(
                "trainable=None names no trainable. Give 'package.module:attribute', or a name that is "
                "registered with Tune."
            )
        has_connection = values.get("storage_conn_id") is not None
        for name in ("prefix", "experiment", "experiments"):
            value = values.get(name, "{{ }}")
            if is_computed(value):
                continue
            for text in parse_addresses(value) if name == "experiments" else [_address_of(value)]:
                address = Address.parse(text)
                if not (has_connection or address.conn_id):  # a connection may open other stores
                    check_scheme(Location.parse(address.uri).scheme)


def _address_of(experiment: Any) -> Any:
    """Return the address of an experiment, or of an element of `CommitRestoreOperator`'s output."""
    return experiment.get("experiment") if isinstance(experiment, Mapping) else experiment
