"""Tasks: how the conversations of a benchmark become questions, and how their answers are scored. Data, not code.

The benchmarks of the paper are in `tasks.yaml` beside this file; a user's own file has the same fields. A prompt is
made from the `meta` of a conversation, so it can change without planning the data set again (docs/evaluation.md).
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from store import Conversation, Modality, Sense, Settings, Turn, UserError, load_settings
from trainer.features import FEATURES_OF

Form = Literal["question", "choice", "caption", "dialog", "dialog_last", "pair"]
Scorer = Literal["exact", "choice", "cider", "bleu", "judged", "dimension"]
Dimension = Literal["correctness", "detail", "context", "temporal", "consistency"]
# what a prompt of each form has to name
PLACES: dict[Form, frozenset[str]] = {
    "question": frozenset(),
    "choice": frozenset({"question", "options"}),
    "caption": frozenset(),
    "dialog": frozenset({"question"}),
    "dialog_last": frozenset({"question"}),
    "pair": frozenset({"question"}),
}
# what a prompt may name; of all other forms, the question
HAS: dict[Form, set[str]] = {"choice": {"question", "options"}, "caption": set()}
# fields of `meta` that hold a data set's questions and answers; without them, the turns do
READ = frozenset({"question", "answer", "options", "captions"})
PLACE = re.compile(r"\{(\w+)\}")
BUILT_IN = Path(__file__).with_name("tasks.yaml")


class Expected(Settings):
    """How many questions a split has.

    Attributes:
        count: questions asked of the model; None if unknown.
        source: how the count is known: `read` in the data or code, `recalled`, or `unknown`.
    """

    count: int | None = None
    source: Literal["read", "recalled", "unknown"] = "unknown"


class Paper(Settings):
    """What the paper reports.

    Attributes:
        figures: the figures by metric, as printed.
        note: how its protocol differs from ours, or how sure it is.
    """

    figures: dict[str, float]
    note: str


class Task(Settings):
    """A benchmark.

    Attributes:
        name: what commands and files call it; also the default name of its conversations in a store.
        title: its usual name.
        files: the files it is planned from.
        expected: questions by split.
        form: how a conversation becomes questions. `question`: its question; `choice`: with options; `caption`: a
            description; `dialog`: each of its turns; `dialog_last`: only the last turn is asked; `pair`: one of two
            questions with one answer.
        history: whether a turn of a dialog is asked after the turns before it, with their true answers.
        prompt: what is asked; `{question}` and `{options}` stand for those of the conversation.
        answer_prefix: how the answer begins; the model goes on from there.
        system: system text; None keeps the checkpoint's.
        modality: what the question refers to, whatever the conversation says; `text` asks blind.
        max_new_tokens: longest answer.
        temperature: of sampling; 0 takes the likeliest token.
        scorer: how answers are scored.
        dimension: which of the five a judge scores; for the scorer `dimension` only.
        group_by: field of `meta` whose value groups the answers; None for no groups.
        group_names: group of a value, with its parents before it (`T/TN`); a value that is not named is its own group.
        cluster_by: field of `meta` that names the video; None takes the media item. Questions about one video are not
            independent, so intervals count videos.
        paper: what the paper reports; None for tasks of others.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    files: str = ""
    expected: dict[str, Expected] = Field(default={})
    form: Form
    history: bool = True
    prompt: str
    answer_prefix: str = ""
    system: str | None = None
    modality: Modality
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    scorer: Scorer
    dimension: Dimension | None = Field(default=None, validate_default=True)
    group_by: str | None = None
    group_names: dict[str, str] = Field(default={})
    cluster_by: str | None = None
    paper: Paper | None = None

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str, info: ValidationInfo) -> str:
        named = set(PLACE.findall(prompt))
        if unknown := named - {"question", "options"}:
            raise ValueError(f"there is no {{{min(unknown)}}}; known are {{question}} and {{options}}")
        form: Form = info.data.get("form", "question")
        if lacking := PLACES[form] - named:
            raise ValueError(f"form {form} needs {{{min(lacking)}}} in its prompt")
        if surplus := named - HAS.get(form, {"question"}):
            raise ValueError(f"form {form} has no {{{min(surplus)}}}")
        return prompt

    @field_validator("scorer")
    @classmethod
    def _check_scorer(cls, scorer: Scorer, info: ValidationInfo) -> Scorer:
        if scorer == "choice" and info.data.get("form") != "choice":
            raise ValueError("scorer choice needs form choice")
        return scorer

    @field_validator("dimension")
    @classmethod
    def _check_dimension(cls, dimension: Dimension | None, info: ValidationInfo) -> Dimension | None:
        if dimension is None and info.data.get("scorer") == "dimension":
            raise ValueError("scorer dimension needs one")
        if dimension is not None and info.data.get("scorer") != "dimension":
            raise ValueError("is for the scorer dimension only")
        if (dimension == "consistency") != (info.data.get("form") == "pair"):
            raise ValueError("consistency and form pair need each other")
        return dimension

    @property
    def judged(self) -> bool:
        """Whether a judge scores the answers."""
        return self.scorer in ("judged", "dimension")

    def expects(self, split: str) -> Expected | None:
        """How many questions a split has; where the split is unknown, those of the only one."""
        only = next(iter(self.expected.values())) if len(self.expected) == 1 else None
        return self.expected.get(split) or (only if not split else None)


class TaskFile(Settings):
    """A file of tasks.

    Attributes:
        tasks: the tasks, in order.
    """

    tasks: tuple[Task, ...]

    @field_validator("tasks")
    @classmethod
    def _check_names(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        repeated = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
        if repeated:
            raise ValueError(f"the name {repeated[0]} stands twice")
        return tasks


TASKS: dict[str, Task] = {task.name: task for task in load_settings(TaskFile, BUILT_IN).tasks}


def load_tasks(path: str | Path) -> dict[str, Task]:
    """The built-in tasks and those of a user's file, by name.

    Raises:
        UserError: the file cannot be read, a field is wrong, or a task has the name of a built-in one.
    """
    own = load_settings(TaskFile, path).tasks
    for task in own:
        if task.name in TASKS:
            raise UserError(f"{path}: task {task.name!r} is built in; choose another name")
    return TASKS | {task.name: task for task in own}


@dataclass(frozen=True)
class Query:
    """One question to the model, and what scoring its answer takes.

    Attributes:
        id: the conversation's id; for a turn of a dialog `<id>#<number>`, from 1.
        occurrence: how many queries of the task before it have the same id.
        key: the media item's key.
        turns: the history with its true answers, then the asked turn, whose response is empty.
        question: the question without the prompt around it, for a judge.
        references: the right answers; for a choice the text of the right option.
        options: what there is to choose from, in order.
        right: place of the right option; None where there are no options.
        groups: the groups it counts in, each after its parents: `audio`, `audio/counting`.
        cluster: the video.
        split: the data set's split; empty if unknown.
        pair: what the two questions of a pair share; empty for all others.
    """

    id: str
    key: str
    turns: tuple[Turn, ...]
    question: str
    references: tuple[str, ...]
    cluster: str
    groups: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    right: int | None = None
    split: str = ""
    pair: str = ""
    occurrence: int = 0


def queries(task: Task, conversations: Iterable[Conversation]) -> list[Query]:
    """The questions of a task, in the order of its conversations and their turns.

    Raises:
        UserError: a conversation lacks what the task needs.
    """
    made = [query for conversation in conversations for query in _queries(_TaskConversation(task, conversation))]
    if task.form == "pair":
        _check_pairs(task, made)
    seen = Counter[str]()
    numbered = []
    for query in made:
        numbered.append(replace(query, occurrence=seen[query.id]) if seen[query.id] else query)
        seen[query.id] += 1
    return numbered


def senses_needed(query: Query) -> list[Sense]:
    """The senses that a query's turns ask by."""
    needed = frozenset().union(*(FEATURES_OF[turn.modality] for turn in query.turns))
    return [sense for sense in get_args(Sense) if FEATURES_OF[sense] & needed]


class _TaskConversation:
    """A conversation as a task reads it.

    Attributes:
        task: the task.
        conversation: the conversation.
        meta: its other fields.
    """

    def __init__(self, task: Task, conversation: Conversation) -> None:
        self.task, self.conversation, self.meta = task, conversation, conversation.meta

    @property
    def is_chat(self) -> bool:
        """Whether the turns are the source's own words, so that one turn is a question and its answer."""
        return len(self.conversation.turns) == 1 and not READ & self.meta.keys()

    def error(self, field: str, expected: str, setting: str = "") -> UserError:
        """The error for a field that is not as the task needs it; `setting` of the task names it, if any does."""
        name, why = self.task.name, ""
        if self.task.files and not READ & self.meta.keys():
            why = f"it is none of {self.task.title}, whose conversations are planned from {self.task.files}; "
        elif setting:
            why = f"meta has {', '.join(sorted(self.meta)) or 'no fields'}; change {setting}, "
        return UserError(
            f"task {name}: conversation {self.conversation.id!r}, field {field!r}: expected {expected}; "
            f"{why}plan the data set again, or name other conversations ({name}=NAME)"
        )

    def text(self, field: str, setting: str = "") -> str:
        """A text of `meta`."""
        value = self.meta.get(field)
        if not isinstance(value, str):
            raise self.error(f"meta.{field}", "a text", setting)
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of at least one text of `meta`."""
        value = self.meta.get(field)
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise self.error(f"meta.{field}", "a list of texts")
        return tuple(value)

    def query(
        self, question: str, references: Sequence[str], history: Sequence[Turn] = (), options: Sequence[str] = ()
    ) -> Query:
        """The query that asks `question`; its first turn carries the media."""
        asked = Turn(_fill(self.task.prompt, question, options), "text", "")
        first, *rest = [*history, asked]
        turns = (replace(first, modality=self.task.modality), *(replace(turn, modality="text") for turn in rest))
        conversation, split, cluster_by = self.conversation, self.meta.get("split"), self.task.cluster_by
        if conversation.key is None:
            raise self.error("key", "a media item; this conversation is text only")
        return Query(
            id=conversation.id,
            key=conversation.key,
            turns=turns,
            question=question,
            references=tuple(references),
            cluster=self.text(cluster_by, "cluster_by") if cluster_by else conversation.key,
            groups=self._groups(),
            options=tuple(options),
            split=split if isinstance(split, str) else "",
        )

    def _groups(self) -> tuple[str, ...]:
        if self.task.group_by is None:
            return ()
        value = self.meta.get(self.task.group_by)
        words = value if isinstance(value, list) else [value]
        if not words or not all(isinstance(word, str | int) for word in words):
            raise self.error(f"meta.{self.task.group_by}", "a text or number, or a list of these", "group_by")
        own = "/".join(map(str, words))
        parts = self.task.group_names.get(own, own.lower()).split("/")
        return tuple("/".join(parts[: end + 1]) for end in range(len(parts)))


def _queries(planned: _TaskConversation) -> Iterator[Query]:
    match planned.task.form:
        case "question":
            yield _ask_question(planned)
        case "choice":
            yield _ask_choice(planned)
        case "caption":
            yield planned.query(planned.task.prompt, planned.texts("captions"))
        case "pair":
            yield replace(_ask_question(planned), pair=planned.text("question_id"))
        case "dialog":
            yield from _ask_turns(planned)
        case "dialog_last":
            yield _ask_last(planned)


def _ask_question(planned: _TaskConversation) -> Query:
    """The question of `meta`, or the only one of a chat; a prompt without a place for it is the question itself."""
    (turn, *_) = planned.conversation.turns
    question = planned.task.prompt
    if "{question}" in question:
        question = turn.instruction if planned.is_chat else planned.text("question")
    return planned.query(question, [turn.response if planned.is_chat else planned.text("answer")])


def _ask_choice(planned: _TaskConversation) -> Query:
    options, right = planned.texts("options"), planned.meta.get("answer_index")
    if len(options) > len(string.ascii_uppercase):
        raise planned.error("meta.options", f"at most {len(string.ascii_uppercase)} options")
    if not isinstance(right, int) or not 0 <= right < len(options):
        raise planned.error("meta.answer_index", f"a place from 0 to {len(options) - 1}")
    return replace(planned.query(planned.text("question"), [options[right]], options=options), right=right)


def _ask_turns(planned: _TaskConversation) -> Iterator[Query]:
    _check_dialog(planned)
    turns = planned.conversation.turns
    for number, turn in enumerate(turns, 1):
        history = turns[: number - 1] if planned.task.history else ()
        references = _references(planned) if number == len(turns) else (turn.response,)
        yield replace(planned.query(turn.instruction, references, history), id=f"{planned.conversation.id}#{number}")


def _ask_last(planned: _TaskConversation) -> Query:
    _check_dialog(planned)
    if "undisclosed" in planned.meta and "references" not in planned.meta:
        raise planned.error("meta.references", "a list of texts, from a file of references beside that of the dialogs")
    *history, last = planned.conversation.turns
    return planned.query(last.instruction, _references(planned), history if planned.task.history else ())


def _references(planned: _TaskConversation) -> tuple[str, ...]:
    """What answers the last turn of a dialog."""
    return planned.texts("references") if "references" in planned.meta else (planned.conversation.turns[-1].response,)


def _check_dialog(planned: _TaskConversation) -> None:
    """Refuse conversations whose turns are ours and not the source's."""
    if {"captions", "options"} & planned.meta.keys():
        raise planned.error("turns", "a dialog")


def _fill(prompt: str, question: str, options: Sequence[str]) -> str:
    listed = "\n".join(f"({letter}) {text}" for letter, text in zip(string.ascii_uppercase, options, strict=False))
    places: Mapping[str, str] = {"question": question, "options": listed}
    return PLACE.sub(lambda match: places[match[1]], prompt)


def _check_pairs(task: Task, made: Sequence[Query]) -> None:
    for pair, count in Counter(query.pair for query in made).items():
        if count != 2:
            raise UserError(f"task {task.name}: pair {pair!r} has {count} of two questions; plan the data set again")
