"""Import one module of a package without the rest of it.

A package's `__init__` may take seconds to import code for training and text, or fetch tokenizers from a hub. An encoder
needs only one module, imported here from the installed package's files.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from store import UserError

PREFIX = "featurize_"  # of the stand-in packages that modules are imported under
HEAVY = ("torchvision", "torchvision.ops")  # two packages import one class from a module there that needs neither


def folder_of(package: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed; pip install 'avllm[featurize]'")
    return Path(spec.submodule_search_locations[0])


def module_of(folder: Path, name: str, without: Sequence[str] = ()) -> Any:
    """Import the module `name` of the package in a folder; neither its `__init__` nor torchvision's is run.

    Args:
        folder: the package's.
        name: of the module.
        without: optional packages to hide from the module.
    """
    package = PREFIX + folder.name
    sys.modules.setdefault(package, _bare(package, folder))
    heavy = {name: folder_of("torchvision").parent / Path(*name.split(".")) for name in HEAVY}
    with _replaced({**{n: _bare(n, f) for n, f in heavy.items()}, **dict.fromkeys(without)}):
        return importlib.import_module(f"{package}.{name}")


def _bare(name: str, folder: Path) -> types.ModuleType:
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    return package


@contextlib.contextmanager
def _replaced(modules: dict[str, types.ModuleType | None]) -> Iterator[None]:
    """Inside, stand-ins replace packages that are not imported yet; afterwards those count as not imported again."""
    new = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(new)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in list(sys.modules):
            if any(name == other or name.startswith(f"{other}.") for other in new):
                del sys.modules[name]
