"""What operators have in common that are mapped over trials or experiments: labels in the grid."""

from typing import Any, ClassVar

from airflow.sdk import BaseOperator

TRIAL_LABEL = "{{ task.trial['label'] }}"
"""The grid shows experiment and trial id in place of 0, 1, 2 …"""

EXPERIMENT_LABEL = "{{ task.experiment['experiment'] | default(task.experiment) }}"
"""The grid shows the experiment."""


class MapIndexLabelOperator(BaseOperator):
    """Base of operators whose map index has a label unless told otherwise (`map_index_template`)."""

    map_index_label: ClassVar[str]

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Set the arguments that all mapped tasks share."""
        kwargs.setdefault("map_index_template", cls.map_index_label)
        return super().partial(**kwargs)
