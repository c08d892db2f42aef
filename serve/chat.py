"""A dialogue in the terminal about one item."""

import secrets
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

from serve.assistant import Assistant, Question
from serve.engine import Limits
from serve.features import available_modality
from serve.questions import check_tokens
from store import Arrays, Modality, Turn, UserError
from store.console import console
from store.tokens import split_tokens
from trainer.features import FEATURES_OF

BY_COMMAND: Mapping[str, Modality] = {"/sight": "visual", "/sound": "audio", "/both": "audio_visual"}
HELP = "/sight, /sound, /both: begin anew, asking by these; /new: begin anew; /quit: end. Ctrl-C stops an answer."


@dataclass
class Chat:
    """A dialogue about an item.

    Attributes:
        assistant: which answers.
        arrays: the item's features.
        limits: of each answer.
        seed: of each answer; None draws one for each.
        system: system text; None keeps the checkpoint's.
        turns: so far.
    """

    assistant: Assistant
    arrays: Arrays
    limits: Limits
    seed: int | None = None
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    _modality: Modality = field(init=False)

    def __post_init__(self) -> None:
        self._modality = available_modality(self.arrays)

    def talk(self) -> None:
        """Answer lines from the terminal until it ends or says /quit."""
        console.print(HELP)
        while (line := _read()) not in (None, "/quit"):
            try:
                if line and line.startswith("/"):
                    self._obey(line)
                elif line:
                    self.say(line)
            except KeyboardInterrupt:
                console.print(" (stopped)")
            except UserError as error:
                console.print(f"error: {error}", markup=False)

    def say(self, text: str) -> None:
        """Print the answer to a question as it comes. The turn is kept, and of a stopped answer what was printed.

        Raises:
            UserError: the question cannot be answered.
        """
        check_tokens(text)
        instruction, modality = split_tokens(text)
        if modality == "text" and not self.turns:
            modality = self._modality
        turn, answer = Turn(instruction, modality, ""), ""
        question = Question((*self.turns, turn), self.arrays, self.system)
        limits = replace(self.limits, seed=secrets.randbits(63) if self.seed is None else self.seed)
        try:
            with closing(self.assistant.stream(question, limits)) as pieces:
                for piece in pieces:
                    fresh = piece.text if answer else piece.text.lstrip()
                    console.out(fresh, end="")
                    answer += fresh
            console.print()
        finally:
            if answer.strip():
                self.turns = (*self.turns, replace(turn, response=answer.rstrip()))

    def _obey(self, command: str) -> None:
        if command not in (*BY_COMMAND, "/new"):
            raise UserError(f"{command}: no such command. {HELP}")
        modality = BY_COMMAND.get(command, self._modality)
        if missing := FEATURES_OF[modality] - self.arrays.keys():
            raise UserError(f"{command}: the item has no {', '.join(sorted(missing))} features")
        self._modality, self.turns = modality, ()


def _read() -> str | None:
    """A line, without blanks around it; None at the end of all input."""
    try:
        line = console.input("you: ").strip()
        if not sys.stdin.isatty():  # a terminal shows what is typed
            console.print(line, markup=False)
        return line
    except KeyboardInterrupt:
        console.print()
        return ""
    except EOFError:
        console.print()
        return None
