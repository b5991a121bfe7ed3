"""A stand-in for `__main__`, in which pickles find what the script of the experiment defined.

A sweep that is started as `python sweep.py` defines its functions and classes in `__main__`. Some of
Ray's searchers pickle them by name (ray.tune.search.optuna.OptunaSearch.save, 2.60). `Tuner.restore`
finds them, for the same script calls it; here that script is one of the modules that the user names.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _MainModule(ModuleType):
    """Has what the user's modules define, and what Python itself keeps in `__main__`."""

    def __init__(self, own: ModuleType, users: Sequence[str]) -> None:
        super().__init__(own.__name__)
        kept = {name: value for name, value in vars(own).items() if name.startswith("__")}
        self.__dict__.update(kept)
        self._own, self._users = own, users

    def __getattr__(self, name: str) -> Any:
        for module in self._users:
            defined = vars(sys.modules[module]) if module in sys.modules else {}
            if name in defined:
                return defined[name]
        raise AttributeError(name)

    def __repr__(self) -> str:
        """Return what pickle shows when a name is missing."""
        return f"<the script of the experiment, looked for in {', '.join(self._users)}>"


def stand_in(names: Sequence[str]) -> None:
    """Let `__main__` have what these modules define; the first that has a name wins.

    Args:
        names: As users give them: `package.module:attribute`, or a module. They may be imported later.
    """
    own = sys.modules["__main__"]
    users = list(dict.fromkeys(name.partition(":")[0] for name in names))
    sys.modules["__main__"] = _MainModule(getattr(own, "_own", own), users)
