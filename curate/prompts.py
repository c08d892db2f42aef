"""Templates of what LLMs are asked, in four sections: ROLE, REQUIREMENT, EXAMPLE and CONTEXT. Source: paper, section 4.

Ours are in `curate/templates`; files of a user's folder take their places.
"""

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from curate.curation import CELLS, MODALITIES, Perceived
from curate.replies import Form, write_turns
from store import Settings, Turn, UserError, load_settings

OURS = Path(__file__).with_name("templates")
SECTIONS = ("ROLE", "REQUIREMENT", "EXAMPLE", "CONTEXT")
HEADING = re.compile(rf"^# ({'|'.join(SECTIONS)})[ \t]*$\n?", re.MULTILINE)
REPLY = "\nReply:\n"
PLAIN = json.JSONEncoder(ensure_ascii=False)
STYLES = "styles.yaml"
PLACES = {
    "fusion": {"captions"},
    "description": {"captions", "form", "instruction", "length"},
    "conversation": {"captions", "form", "count", "aspect", "tone"},
    "reasoning": {"captions", "form", "aspect", "tone"},
    "judge": {"captions", "modality", "task", "turns"},
}
NAMES = (*(f"fusion-{modality}" for modality in MODALITIES), *map(str, CELLS), "judge")
Words = list[str]


class DescriptionStyle(Settings):
    """How descriptions differ.

    Attributes:
        length: of an answer.
        instruction: what is asked, by modality.
    """

    length: Words = Field(min_length=1)
    instruction: dict[Perceived, Words]


class QuestionStyle(Settings):
    """How questions differ.

    Attributes:
        aspect: what they are about.
        tone: how they are put.
    """

    aspect: Words = Field(min_length=1)
    tone: Words = Field(min_length=1)


class Styles(Settings):
    """How instructions differ; one of each list is drawn by seed, the list's name, cell and rank of an instruction."""

    description: DescriptionStyle
    conversation: QuestionStyle
    reasoning: QuestionStyle


@dataclass(frozen=True)
class Template:
    """What is asked for one purpose.

    Attributes:
        name: `<task>-<modality>`, `fusion-<modality>` or `judge`.
        sections: its texts, by the names of `SECTIONS`.
    """

    name: str
    sections: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Of its text; 16 digits."""
        return hashlib.sha256(json.dumps(dict(self.sections), sort_keys=True).encode()).hexdigest()[:16]

    def messages(self, places: Mapping[str, str], form: Form = "lines") -> list[dict[str, str]]:
        """The messages of a request.

        Args:
            places: texts by the names of their places.
            form: of the example's reply.
        """
        system = self._system(form, tuple((name, places[name]) for name in self._system_places))
        context = string.Template(self.sections["CONTEXT"]).substitute(places)
        return [{"role": "system", "content": system}, {"role": "user", "content": f"CONTEXT\n{context}"}]

    @cached_property
    def _system_places(self) -> list[str]:
        return sorted({place for name in SECTIONS[:-1] for place in _places_of(self.sections[name])})

    @cached_property
    def _system(self) -> Callable[[Form, tuple[tuple[str, str], ...]], str]:
        """Fills the sections before the context; many requests have them in common."""

        @lru_cache(maxsize=1024)
        def fill(form: Form, places: tuple[tuple[str, str], ...]) -> str:
            example, reply, turns = self.sections["EXAMPLE"].partition(REPLY)
            texts = {**self.sections, "EXAMPLE": f"{example}{reply}{write_turns(turns, form) if reply else ''}"}
            return "\n\n".join(
                f"{name}\n{string.Template(texts[name]).substitute(dict(places))}" for name in SECTIONS[:-1]
            )

        return fill


@dataclass(frozen=True)
class Templates:
    """All that is asked.

    Attributes:
        by_name: the templates.
        styles: how instructions differ.
    """

    by_name: Mapping[str, Template]
    styles: Styles

    def __getitem__(self, name: str) -> Template:
        return self.by_name[name]


def load_templates(folder: Path | None = None) -> Templates:
    """Our templates, or those of a folder where it has them.

    Raises:
        UserError: a file of the folder is no template, lacks a section, or has a place that nothing fills.
    """
    names = {*(f"{name}.md" for name in NAMES), STYLES}
    try:
        files = {path.name: path for path in sorted(folder.iterdir())} if folder else {}
    except OSError as error:
        raise UserError(f"field 'templates': {folder}: {error.strerror}") from None
    if unknown := [name for name in files if name not in names and not name.startswith(".")]:
        raise UserError(f"{folder}/{unknown[0]}: no template has this name; accepted: {', '.join(sorted(names))}")
    paths = {name: files.get(name, OURS / name) for name in names}
    styles = load_settings(Styles, paths[STYLES])
    if lacking := [m for m in MODALITIES if not styles.description.instruction.get(m)]:
        raise UserError(f"{paths[STYLES]}: field 'description.instruction.{lacking[0]}': expected a list of texts")
    return Templates({name: _load(name, paths[f"{name}.md"]) for name in NAMES}, styles)


def _load(name: str, path: Path) -> Template:
    try:
        _, *parts = HEADING.split(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if tuple(parts[::2]) != SECTIONS:
        headings = ", ".join(f"# {section}" for section in SECTIONS)
        raise UserError(f"{path}: expected the headings {headings}, each once and in this order")
    template = Template(name, {section: text.strip() for section, text in zip(parts[::2], parts[1::2], strict=True)})
    _check(template, path)
    return template


def _check(template: Template, path: Path) -> None:
    """Refuse a template whose places are not those of its task, or whose example cannot be read."""
    known = PLACES[template.name.partition("-")[0]]
    places = {place for text in template.sections.values() for place in _places_of(text)}
    if places != known:
        wrong = sorted(places ^ known)[0]
        what = "has no text for it" if wrong in places else "lacks it"
        raise UserError(f"{path}: place ${wrong}: the template {what}; its places: {', '.join(sorted(known))}")
    try:
        template.messages(dict.fromkeys(known, ""), "json")
    except ValueError as error:
        raise UserError(f"{path}: EXAMPLE: {error}; expected lines Q: and A: behind 'Reply:'") from None


def _places_of(text: str) -> Iterable[str]:
    template = string.Template(text)
    return template.get_identifiers() if template.is_valid() else ["(a lone $; write $$)"]


def untrusted_block(name: Literal["captions", "turns"], content: Sequence[object]) -> str:
    """Untrusted texts as JSON between marks that they cannot hold: the marks have a digest of the texts.

    `<` and `>` are escaped, so that no text is a control token of a chat model.
    """
    text = PLAIN.encode(content).replace("<", "\\u003c").replace(">", "\\u003e")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"<{name}-{digest}>\n{text}\n</{name}-{digest}>"


def turns_block(turns: Sequence[Turn]) -> str:
    """Questions and answers for a judge."""
    return untrusted_block("turns", [{"question": turn.instruction, "answer": turn.response} for turn in turns])
