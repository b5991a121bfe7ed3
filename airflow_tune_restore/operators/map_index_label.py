"""Labels in the grid for operators that are mapped over trials or experiments."""

from typing import Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_tune_restore.arguments import check_literals

TRIAL_LABEL = "{{ task.trial['label'] }}"
"""The grid shows experiment and trial id instead of 0, 1, 2 …"""

EXPERIMENT_LABEL = "{{ task.experiment['experiment'] | default(task.experiment) }}"
"""The grid shows the experiment."""


class MapIndexLabelOperator(BaseOperator):
    """Base of operators that are mapped: a default for `map_index_template`, and checked arguments."""

    map_index_label: ClassVar[str]

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Set the arguments that all mapped tasks share."""
        check_literals(kwargs, cls.template_fields)
        kwargs.setdefault("map_index_template", cls.map_index_label)
        return super().partial(**kwargs)
