"""Read a pickled numpy array without running any function that the pickle names.

A pickle is a program that can import and call any function. This unpickler maps a few known names to our own functions,
which can only make plain float arrays, and refuses any other name before importing it.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.errors import UserError
from store.exchange.importing import UnusableError

ARRAY = object()  # placeholder for numpy.ndarray, which a pickle could call
FLOATS = ("f2", "<f2", "f4", "<f4", "float16", "float32")


def load_array(path: Path) -> NDArray[Any]:
    """Load the array in a pickle file.

    Raises:
        UserError: the pickle names something that no plain array needs; it was not run.
        UnusableError: the file is missing or damaged, or holds no float array.
    """
    try:
        with open(path, "rb") as file:
            value = _ArrayUnpickler(file, str(path)).load()
    except UserError:
        raise
    except FileNotFoundError:
        raise UnusableError("missing", "no such file") from None
    except Exception as error:  # a damaged pickle raises almost anything
        empty = not path.stat().st_size
        raise UnusableError("empty" if empty else "unreadable", f"not a pickled array: {error}") from None
    if type(value) is not np.ndarray or value.dtype.kind != "f":
        raise UnusableError("unreadable", f"holds a {type(value).__name__}, not an array of floats")
    return value


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, where: str) -> None:
        super().__init__(file)
        self._where = where

    def find_class(self, module: str, name: str) -> Any:
        """Return our own stand-in for each of the few names in an array's pickle; refuse all others."""
        if module == "numpy" and name == "ndarray":
            return ARRAY
        if module == "numpy" and name == "dtype":
            return _fresh(_dtype)
        inside = module.removeprefix("numpy._core.").removeprefix("numpy.core.")
        if module != inside and (inside, name) == ("multiarray", "_reconstruct"):
            return _fresh(_reconstruct)
        if module != inside and (inside, name) == ("numeric", "_frombuffer"):
            return _fresh(_frombuffer)
        raise UserError(
            f"{self._where}: refused: the pickle calls {module}.{name}, which no array needs; nothing of it was run"
        )


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap in a new function object: a pickle can set attributes on it, and these must not reach the original."""
    return lambda *arguments: function(*arguments)


def _dtype(name: object, align: object = False, copy: object = True) -> np.dtype[Any]:
    if name not in FLOATS:
        raise ValueError(f"dtype {name!r}; accepted: float16, float32")
    made: np.dtype[Any] = np.dtype(str(name), copy=True)
    return made


def _reconstruct(kind: object, shape: object, code: object) -> NDArray[Any]:
    """An empty array, as in numpy's own `_reconstruct`; the pickle's next instruction sets its state."""
    if kind is not ARRAY:
        raise ValueError(f"expected an array, found {kind!r}")
    return np.ndarray((0,), "b")


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)
