"""Settings: strict pydantic models, read from YAML and overridden by `field=value` arguments of the command line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from store.errors import UserError


class Settings(BaseModel):
    """Base of every settings model: unknown fields are refused, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def load_settings(model: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file into `model`; each override is `field=value` or `field.0.inner=value`, with a YAML value.

    Raises:
        UserError: the file cannot be read, a field is unknown, or a value is not accepted.
    """
    try:
        data = yaml.safe_load(Path(path).read_bytes()) or {}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a YAML file of {model.__name__}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    for word in overrides:
        override(data, word)
    return parse_settings(model, data, str(path))


def parse_settings(model: type[S], data: Mapping[str, Any], where: str) -> S:
    """Build `model` from plain data.

    Raises:
        UserError: a field is unknown or its value is not accepted; the message names `where` and the field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        deepest = [e for e in errors if not any(o["loc"][: len(e["loc"])] == e["loc"] != o["loc"] for o in errors)]
        raise UserError(f"{where}: " + "; ".join(_explain(model, data, e) for e in deepest)) from None


def override(data: dict[str, Any], word: str) -> None:
    """Apply one override, `field=value` or `field.0.inner=value`, to plain data in place.

    Raises:
        UserError: the override has no `=`, its value is not YAML, or the field's path does not exist.
    """
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise UserError(f"override {word!r}: expected field=value, for example global_batch=64")
    *parents, last = name.split(".")
    node: Any = data
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override {word!r}: {value!r} is not YAML") from None
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        node[int(last) if isinstance(node, list) else last] = parsed
    except (IndexError, ValueError, TypeError, AttributeError):
        raise UserError(f"override {word!r}: there is no field {name!r} to set") from None


def _explain(model: type[BaseModel], data: Any, error: Any) -> str:
    field = ".".join(_as_typed(data, error["loc"])) or "settings"
    if error["type"] == "extra_forbidden":
        inner = _model_at(model, error["loc"][:-1])
        return f"unknown field {field!r}" + (f" (accepted: {', '.join(sorted(inner.model_fields))})" if inner else "")
    return f"field {field!r}: {error['msg']}"


def _as_typed(data: Any, path: Sequence[str | int]) -> list[str]:
    """The path as the user wrote it: without the names that pydantic inserts for union members."""
    typed = []
    for number, part in enumerate(path, 1):
        inside = isinstance(part, int) or (isinstance(data, Mapping) and part in data)
        if inside or number == len(path):
            typed.append(str(part))
            data = data[part] if inside else None
    return typed


def _model_at(model: type[BaseModel] | None, path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model at `path`; list positions and mapping keys lead to the model of the elements."""
    for part in path:
        if model and part in model.model_fields:
            model = _model_in(model.model_fields[str(part)].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)
