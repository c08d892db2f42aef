"""Facts about conversations in arrays of fixed width: what training decides by without reading a text."""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from store.conversation import MODALITIES, Modality, Sense
from store.errors import DamagedError
from store.hashes import hash_keys
from store.maps import Map

TEXT, VISUAL, AUDIO, BOTH, ANSWERED = (1 << bit for bit in range(5))  # the first four in the order of `MODALITIES`
SENSES: dict[Sense, int] = {"visual": VISUAL, "audio": AUDIO}
PRINTABLE = "[!-~]"  # a response with such a character is not blank; only the others are looked at in Python
GROWTH = 3  # NFC makes a text at most three times as many bytes
AROUND_TURN = len("\n Human: ") + len("\n Assistant:") + 3  # what a prompt adds to a turn: texts, an end, two spaces


class Facts:
    """What is known of N conversations without reading their texts.

    Attributes:
        key: hash of the item's key (of "" if there is none), uint64 [N, 2].
        bits: modalities of the turns, and whether some response is not blank, uint8 [N].
        lead: positions before the first response that is not blank, at most: without rows of features, and without
            what a prompt puts before the first turn; uint32 [N].
        media: how many of the turns up to that response perceive, uint16 [N].
    """

    def __init__(self, content: Map) -> None:
        arrays = {name: array.to_numpy() for name, array in content.arrays().items()}
        for array in arrays.values():
            content.check(array)
        self.key: NDArray[np.uint64] = arrays["key"].reshape(-1, 2)
        self.bits: NDArray[np.uint8] = arrays["bits"]
        self.lead: NDArray[np.uint32] = arrays["lead"]
        self.media: NDArray[np.uint16] = arrays["media"]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Whether some response is not blank, bool [N]."""
        return np.greater(self.bits & ANSWERED, 0)

    def perceives(self, sense: Sense) -> NDArray[np.bool_]:
        """Whether a turn perceives by this sense, alone or with the other one; bool [N]."""
        return np.greater(self.bits & (SENSES[sense] | BOTH), 0)

    def of_modality(self, modality: Modality) -> NDArray[np.bool_]:
        """Whether the combined modality is this one (`Conversation.modality`), bool [N]."""
        return np.equal(_combined()[self.bits], MODALITIES.index(modality))

    def can_ask(self, sense: Sense) -> NDArray[np.bool_]:
        """Whether a conversation can be asked by this sense alone (`Conversation.asked_by`), bool [N]."""
        other = (VISUAL | AUDIO) & ~SENSES[sense]
        return np.equal(self.bits & (BOTH | other), BOTH)


@cache
def _combined() -> NDArray[np.uint8]:
    """The number in `MODALITIES` of the combined modality, by bits."""
    seen = [[m for m in (1, 2, 3) if bits & (1 << m)] for bits in range(2 * ANSWERED)]
    return np.array([3 if len(each) > 1 else sum(each) for each in seen], np.uint8)


def facts_of(batch: pa.RecordBatch, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of `Facts` for a batch of rows of `conversation.SCHEMA`; `where` is their file, for messages.

    Raises:
        DamagedError: a turn has no known modality.
    """
    turns = batch.column("turns")
    count, lengths = len(batch), pc.list_value_length(turns).to_numpy()
    owner = np.repeat(np.arange(count), lengths)
    asked, modality, response = turns.flatten().flatten()
    codes = pc.fill_null(pc.index_in(modality, pa.array(MODALITIES)), len(MODALITIES)).to_numpy()
    if (codes == len(MODALITIES)).any():
        number = owner[codes.argmax()].item()
        name = batch.column("id")[number]
        raise DamagedError(f"{where}: conversation {name}: a turn's modality is none of {', '.join(MODALITIES)}")
    answers = _is_answer(response)
    bits = np.zeros(count, np.uint8)
    np.bitwise_or.at(bits, owner, np.left_shift(1, codes).astype(np.uint8) | ANSWERED * answers.astype(np.uint8))
    before: NDArray[np.int64] = np.cumsum(answers) - answers  # answers in all turns before
    leads: NDArray[np.bool_] = before == before[(np.cumsum(lengths) - lengths)[owner]]
    size = pc.binary_length(asked).to_numpy()
    size = np.where(size == pc.utf8_length(asked).to_numpy(), size, GROWTH * size) + AROUND_TURN
    return {
        "key": hash_keys(batch.column("key")).ravel(),
        "bits": bits,
        "lead": np.bincount(owner[leads], size[leads], count).astype(np.uint32),
        "media": np.bincount(owner[leads & (codes > 0)], minlength=count).astype(np.uint16),
    }


def longest_text(text: str) -> int:
    """The most tokens that a text can have: one for each byte, after characters were composed."""
    return len(text) if text.isascii() else GROWTH * len(text.encode())


def _is_answer(responses: pa.Array) -> NDArray[np.bool_]:
    """Whether each response is not blank, as `str.strip` sees it."""
    printable: NDArray[np.bool_] = pc.match_substring_regex(responses, PRINTABLE).to_numpy(zero_copy_only=False)
    rest = np.flatnonzero(~printable)
    printable[rest] = [bool(text.strip()) for text in responses.take(pa.array(rest)).to_pylist()]
    return printable
