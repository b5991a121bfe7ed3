"""Labels in the grid for operators that are mapped over trials or experiments."""

from typing import Any, ClassVar

from airflow_tune_restore.operators.recipe_operator import RecipeOperator

TRIAL_LABEL = "{{ task.trial['label'] }}"
"""The grid shows experiment and trial id instead of 0, 1, 2 …"""

EXPERIMENT_LABEL = "{{ task.experiment['experiment'] | default(task.experiment) }}"
"""The grid shows the experiment."""


class MapIndexLabelOperator(RecipeOperator):
    """Base of operators that are mapped: a default for `map_index_template`."""

    map_index_label: ClassVar[str]

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Set the arguments that all mapped tasks share."""
        kwargs.setdefault("map_index_template", cls.map_index_label)
        return super().partial(**kwargs)
