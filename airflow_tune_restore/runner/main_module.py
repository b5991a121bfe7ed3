"""A `__main__` in which pickles find the functions and classes of the experiment's script.

A sweep that is started as `python sweep.py` defines its functions and classes in `__main__`. Some of
Ray's searchers pickle them by name (ray.tune.search.optuna.OptunaSearch.save, 2.60). `Tuner.restore`
finds them because the same script calls it. Here, the script is one of the modules that the user names.
"""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class _MainModule(ModuleType):
    """Has the names of the user's modules, and the names that Python itself sets in `__main__`."""

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
        raise AttributeError(f"Can't get attribute {name!r} on {self!r}")  # as pickle before 3.14

    def __repr__(self) -> str:
        """Return the text that a user reads if a name is missing."""
        return f"<the script of the experiment, searched in {', '.join(self._users)}>"


def stand_in(names: Sequence[str]) -> None:
    """Give `__main__` the names of these modules; the first module that has a name wins.

    A name is a module, or `package.module:attribute`. Modules may be imported later.
    """
    own = sys.modules["__main__"]
    users = list(dict.fromkeys(name.partition(":")[0] for name in names))
    sys.modules["__main__"] = _MainModule(getattr(own, "_own", own), users)
