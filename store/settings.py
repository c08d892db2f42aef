"""Settings: strict pydantic models, read from YAML and overridden by `field=value` arguments of the command line."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from store.errors import UserError


class Settings(BaseModel):
    """Base of every settings model: unknown fields are refused, and instances are immutable.

    Attributes:
        elsewhere: what other programs call its fields; told to whom uses their names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    elsewhere: ClassVar[Mapping[str, str]] = {}


S = TypeVar("S", bound=Settings)
COMMANDS = {  # whose files alone have such a field
    "stage": "avllm trainer train", "columns": "avllm featurize run", "mix": "avllm curate run",
    "stages": "avllm ablate",
}  # fmt: skip
OF_ANOTHER = 3  # unknown fields, if they are the most, that make a file one of another command


def load_settings(model: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file into `model`; each override is `field=value` or `field.0.inner=value`, with a YAML value.

    Args:
        model: of the settings.
        path: of the file, or the name of one that is shipped with the model's package.
        overrides: applied in order.

    Raises:
        UserError: the file cannot be read, a field is unknown, or a value is not accepted.
    """
    path = find_config(model, path)
    try:
        data = yaml.load(Path(path).read_bytes(), _Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a YAML file of {model.__name__}") from None
    except yaml.reader.ReaderError:
        raise UserError(f"{path}: not YAML: the file is not text") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {yaml_fault(error)}") from None
    if data is None:
        needed = ", ".join(name for name, field in model.model_fields.items() if field.is_required())
        if needed and not overrides:
            raise UserError(f"{path}: the file is empty; {model.__name__} needs {needed}")
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of settings, found {type(data).__name__}")
    for word in overrides:
        override(data, word)
    return parse_settings(model, data, str(path), overrides)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and lines.setdefault(key.value, line) != line:
                twice = f"{key.value!r} stands here and on line {lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=twice, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def yaml_fault(error: yaml.YAMLError) -> str:
    """Where YAML is broken and how."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    line, hint = error.problem_mark.line + 1, ""
    if "'\\t'" in str(error.problem):
        hint = "; indent with blanks instead of tabs"
    elif error.context_mark and error.context_mark.line + 1 != line:
        hint = f"; it belongs to what begins on line {error.context_mark.line + 1}"
    return f"line {line}: {error.problem}{hint}"


def find_config(model: type[Settings], name: str | Path) -> Path:
    """A configuration: a file by its path, or one shipped with the model's package by its name, such as `demo`.

    Where the package ships none, the path is returned whether there is a file or not.

    Raises:
        UserError: there is no such file, and of those that are shipped none has that name.
    """
    path, known = Path(name), shipped(model)
    if path.is_file() or not known:
        return path
    if str(name) in known:
        return known[str(name)]
    what = "a folder" if path.is_dir() else "no such file"
    raise UserError(
        f"{name}: {what}{guess(str(name), known)}; shipped configurations of {model.__name__}: {', '.join(known)}"
    )


def shipped(model: type[Settings]) -> dict[str, Path]:
    """The configurations in the folder `configs` of the model's package, by name."""
    return {path.stem: path for path in sorted((Path(inspect.getfile(model)).parent / "configs").glob("*.yaml"))}


def guess(word: str, known: Iterable[str], before: str = "") -> str:
    """Ask `; did you mean ...?` where a known word is close to `word`; `before` is put before it."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {before + near[0]!r}?" if near else ""


def parse_settings(model: type[S], data: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> S:
    """Build `model` from plain data.

    Args:
        model: of the settings.
        data: plain data, in which overrides are applied.
        where: the data come from.
        overrides: that were applied; a field that they set is told as theirs.

    Raises:
        UserError: a field is unknown or its value is not accepted; the message names the field and `where`, or the
            override.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        unknown = [str(e["loc"][0]) for e in errors if e["type"] == "extra_forbidden" and len(e["loc"]) == 1]
        meant = [command for field, command in COMMANDS.items() if field in unknown]
        if meant or (2 * len(unknown) > len(data) and len(unknown) >= OF_ANOTHER):
            some, accepted = ", ".join(unknown[:OF_ANOTHER]), ", ".join(sorted(model.model_fields))
            more = " ..." if unknown[OF_ANOTHER:] else ""
            other = f"a file for {meant[0]}" if meant else "a file of another command"
            raise UserError(
                f"{where}: {other}, it seems: {model.__name__} has no field {some}{more} (accepted: {accepted})"
            ) from None
        deepest = [e for e in errors if not any(o["loc"][: len(e["loc"])] == e["loc"] != o["loc"] for o in errors)]
        faults: dict[str, dict[str, list[str]]] = {}
        for fault in deepest:
            field, message = _explain(model, data, fault)
            faults.setdefault(_origin(data, fault["loc"], where, overrides), {}).setdefault(field, []).append(message)
        told = (
            f"{origin}: " + "; ".join(f"{field}{', or '.join(dict.fromkeys(said))}" for field, said in by_field.items())
            for origin, by_field in faults.items()
        )
        raise UserError("; ".join(told)) from None


def _origin(data: Any, loc: Sequence[str | int], where: str, overrides: Sequence[str]) -> str:
    """The last override that set a field, or what encloses it; else `where`."""
    field = ".".join(_as_typed(data, loc))
    return next(
        (f"override {o!r}" for o in reversed(overrides) if f"{field}.".startswith(f"{o.split('=')[0]}.")), where
    )


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
    if not value:
        raise UserError(f"override {word!r}: has no value; {name}=null is none, {name}='' an empty text")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override {word!r}: {value!r} is not YAML") from None
    try:
        for part in parents:
            if isinstance(node, dict) and node.get(part) is None:  # `zero: null` in the file, and zero.stage=1
                node[part] = {}
            node = node[int(part) if isinstance(node, list) else part]
        node[int(last) if isinstance(node, list) else last] = parsed
    except (IndexError, ValueError, TypeError, AttributeError):
        there = f"; its list has the entries 0 to {len(node) - 1}" if isinstance(node, list) and node else ""
        raise UserError(f"override {word!r}: there is no field {name!r} to set{there}") from None


def _explain(model: type[BaseModel], data: Any, error: Any) -> tuple[str, str]:
    """The field, as a message begins, and what is wrong with it."""
    inner = _model_at(model, error["loc"][:-1])
    last = error["loc"][-1] if error["loc"] else ""
    is_name = error["type"] in ("missing", "extra_forbidden") or bool(inner and last in inner.model_fields)
    field = ".".join(_as_typed(data, error["loc"], is_name))
    if error["loc"][-1:] == ("[key]",):
        return f"unknown field {field!r}: ", _message(model, error).partition(", found")[0]
    if error["type"] == "extra_forbidden":
        known = sorted(inner.model_fields) if inner else []
        accepted = f" (accepted: {', '.join(known)})" if known else ""
        before, dot, last = field.rpartition(".")
        other = inner.elsewhere.get(last) if inner and issubclass(inner, Settings) else None
        meant = f"; did you mean {before + dot + other!r}?" if other else guess(last, set(known) - {last}, before + dot)
        return f"unknown field {field!r}{meant}{accepted}", ""
    return f"field {field!r}: " if field else "", _message(model, error)


def _message(model: type[BaseModel], error: Any) -> str:
    """Pydantic's message in a user's words, with the value that was found."""
    found, inner = error["input"], _model_at(model, error["loc"])
    fields = inner and ", ".join(f"{name}: ..." for name, field in inner.model_fields.items() if field.is_required())
    match error["type"]:
        case "missing":
            return "is required"
        case "tuple_type" | "list_type" if not isinstance(found, Mapping):
            return f"expected a list, such as [{f'{{{fields}}}' if fields else found}]"
        case "model_type" if fields:
            return f"expected {{{fields}}}, found {found!r}"
        case "too_short":
            return f"expected at least {error['ctx']['min_length']} of a list, found {error['ctx']['actual_length']}"
        case "too_long":
            return f"expected at most {error['ctx']['max_length']} of a list, found {error['ctx']['actual_length']}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not message.startswith("Input should be "):
        return message
    is_short = isinstance(found, str | int | float | bool | None)
    expected = message.removeprefix("Input should be ").partition(", unable to parse")[0]
    return f"expected {expected}" + (f", found {found!r}" if is_short else "")


def _as_typed(data: Any, path: Sequence[str | int], with_last: bool = False) -> list[str]:
    """The path as the user wrote it: without the names that pydantic inserts for union members.

    Args:
        data: in which the path is.
        path: of a field.
        with_last: whether the last part is a name of the user's, or lacks in the data.
    """
    typed = []
    for number, part in enumerate(path, 1):
        inside = isinstance(part, int) or (isinstance(data, Mapping) and part in data)
        if inside or (with_last and number == len(path)):
            typed.append(str(part))
            data = data[part] if inside else None
    return typed


def _model_at(model: type[BaseModel] | None, path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model at `path`; list positions and mapping keys lead to the model of the elements."""
    union: Any = None
    for part in path:
        if model and part in model.model_fields:
            union = model.model_fields[str(part)].annotation
            model = _model_in(union)
        else:
            model = _member(union, str(part)) or model
    return model


def _member(annotation: Any, name: str) -> type[BaseModel] | None:
    """The model of a union that pydantic names so: by its tag, or by its class."""
    if Tag(name) in getattr(annotation, "__metadata__", ()) or getattr(annotation, "__name__", "") == name:
        return _model_in(annotation)
    return next((model for arg in get_args(annotation) if (model := _member(arg, name))), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)
