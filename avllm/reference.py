"""The reference pages of settings and commands, made from the code itself."""

import importlib
import inspect
import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from avllm import PACKAGES

MODELS = {
    "featurize run": "featurize.settings:FeaturizeConfig",
    "curate run": "curate.curation:CurationSettings",
    "trainer train": "trainer.settings:TrainConfig",
    "ablate": "ablate.settings:AblateConfig",
    "serve api": "serve.api.settings:ApiSettings",
    "outside LLMs": "curate.settings:ClientSettings",
}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "(at least {})", "max_length": "(at most {})"}
MADE = "<!-- made by `python -m avllm reference docs/reference`; tests/test_front_door.py compares it with the code -->"


def pages(root: Any) -> dict[str, str]:
    """The pages by file name; `root` is the console script's command."""
    return {"settings.md": settings_page(), "commands.md": commands_page(root)}


def write(folder: Path, root: Any) -> None:
    """Write the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(root).items():
        (folder / name).write_text(text)


def settings_page() -> str:
    """Every field of the settings in MODELS, and of those in them: its type, default and meaning."""
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        "Any field is overridden on the command line: `field=value`, `field.0.inner=value`.",
        "",
    ]
    done: set[type[BaseModel]] = set()
    for command, path in MODELS.items():
        module, _, name = path.partition(":")
        lines += [f"## Of {command}" if command == "outside LLMs" else f"## Of `{command}`", ""]
        for model in _nested(getattr(importlib.import_module(module), name)):
            if model not in done:
                done.add(model)
                lines += _table(model)
    return "\n".join(lines)


def commands_page(root: Any) -> str:
    """Every command with its arguments and options."""
    lines = ["# Commands", "", MADE, "", "`avllm X` is `python -m X`, except for `init`, `configs` and `doctor`.", ""]
    lines += [
        line
        for name, command in root.commands.items()
        if not command.hidden
        for line in _command(f"avllm {name}", command)
    ]
    for package in PACKAGES:
        tree: Any = typer.main.get_command(importlib.import_module(f"{package}.__main__").app)
        lines += _commands(f"avllm {package}", tree)
    return "\n".join(lines)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What each field means, as the docstrings of a model and its bases say under `Attributes:`."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        _, _, attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes.split("\n\n")[0]):
            name, colon, text = entry.strip().partition(":")
            if colon:
                found[name] = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    return found


def _nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model, and those of its fields."""
    yield model
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            yield from _nested(inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _table(model: type[BaseModel]) -> list[str]:
    """A model's fields as a table."""
    meaning = meanings(model)
    lines = [f"### {model.__name__}", "", inspect.cleandoc(model.__doc__ or "").partition("\n")[0], ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        said = meaning.get(name) or field.description or ""
        lines.append(
            f"| `{name}` | {_cell(_type(field.annotation, field.metadata))} | {_default(field)} | {_cell(said)} |"
        )
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see there"
    return f"`{json.dumps(value, default=str)}`"


def _type(annotation: Any, metadata: Any = ()) -> str:
    """A type in words, with its bounds."""
    bounds = [
        f" {sign.format(getattr(m, name))}" if "{" in sign else f" {sign} {getattr(m, name)}"
        for m in metadata
        for name, sign in BOUNDS.items()
        if getattr(m, name, None) is not None
    ]
    return _plain(annotation) + ",".join(bounds)


def _plain(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], args[1:])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_plain(arg) for arg in args))
    if origin in (tuple, list):
        return f"list of {_plain(args[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {_plain(args[0])} to {_plain(args[1])}"
    if annotation is type(None):
        return "null"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _commands(name: str, command: Any) -> list[str]:
    """A command's section, and those of its subcommands."""
    inner = getattr(command, "commands", None)
    if not inner:
        return _command(name, command)
    return [line for word, sub in inner.items() if not sub.hidden for line in _commands(f"{name} {word}", sub)]


def _command(name: str, command: Any) -> list[str]:
    """A command's section: what it does, and its parameters."""
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    lines = [f"## {name}", "", _paragraphs(command.help), ""]
    if shown:
        lines += ["| parameter | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{_shown(p)}` | {_given(p)} | {_cell(p.help or '')} |" for p in shown] + [""]
    return lines


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text or ""))


def _shown(parameter: Any) -> str:
    return ", ".join(parameter.opts) if parameter.param_type_name == "option" else str(parameter.name).upper()


def _given(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, (), PydanticUndefined) else f"`{value}`"
