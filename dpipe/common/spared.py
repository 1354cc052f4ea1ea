"""Packages that the processes of the program ``dpipe`` do without.

Covers: having them refused where something else would import them in passing.
Does not cover: processes of a caller, who may need them.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

_SPARED = ("matplotlib", "pandas")
"""igraph imports Matplotlib wherever there is one, to draw; Arrow pandas, as soon as it is given a
list. Together they take as long as all passes over a small table, and no command needs them."""


def spare_imports() -> None:
    """Have those packages refused in this process from now on."""
    sys.meta_path.insert(0, _Refusal())


class _Refusal(MetaPathFinder, Loader):
    """Finds what is refused before any other finder, and then refuses to load it.

    Whoever asks whether it is installed is told that it is, which is true.
    """

    def find_spec(self, fullname: str, _path: object, _target: object = None) -> ModuleSpec | None:
        """Find what is refused; None leaves a module to the other finders."""
        return spec_from_loader(fullname, self) if fullname in _SPARED else None

    def exec_module(self, module: ModuleType) -> None:
        """Refuse, as if the package was not there."""
        raise ModuleNotFoundError(f"the program dpipe does without {module.__name__}.")
