"""Shapes for estimates without a model hub or a store: LLMs, columns, the paper's corpora.

Training never reads them: it takes the model's own configuration and the columns that a store holds.
"""

import numpy as np
from transformers import LlamaConfig

from store import Modality, UserError
from trainer.batch import Sample
from trainer.features import FEATURES, FEATURES_OF
from trainer.prompt import ROW, Tokens
from trainer.settings import TrainConfig

LLMS = {  # width, MLP width, layers, heads, key heads, vocabulary, tied word vectors and head
    "lmsys/vicuna-7b-v1.5": (4096, 11008, 32, 32, 32, 32000, False),  # Llama 2's, arXiv 2307.09288
    "lmsys/vicuna-13b-v1.5": (5120, 13824, 40, 40, 40, 32000, False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (576, 1536, 30, 9, 3, 49152, True),
    "meta-llama/Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
}
COLUMNS = {"clip-vit-l-14": (256, 1024), "clip-vit-s-32": (49, 384), "clap-htsat-tiny": (1, 768)}  # patches N, width D
# The paper's corpora: thousands of conversations, modality, whether the item is a still. They are LLaVA's stills,
# Valley's clips, and the curated instructions: visual, audio, and audio-visual.
CORPORA: tuple[tuple[int, Modality, bool], ...] = (
    (650, "visual", True),
    (770, "visual", False),
    (130, "visual", False),
    (45, "audio", False),
    (85, "audio_visual", False),
)
PROMPT, RESPONSE = 60, 100  # tokens per conversation, assumed
SPREAD = (5**0.5 - 1) / 2  # golden ratio: its multiples modulo 1 cover [0, 1) evenly


def llm_shape(model: str) -> LlamaConfig | None:
    """The configuration of an LLM; None if it is not listed here."""
    return llama(*LLMS[model]) if model in LLMS else None


def llama(hidden: int, mlp: int, layers: int, heads: int, keys: int, words: int, tied: bool) -> LlamaConfig:
    """A configuration from a row of `LLMS`."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=words,
        tie_word_embeddings=tied,
    )


def column_widths(config: TrainConfig) -> dict[str, int]:
    """The width D of each feature of a run's columns.

    Raises:
        UserError: a column is not listed here.
    """
    columns = {"temporal": config.visual, "spatial": config.visual, "audio": config.audio}
    for name in columns.values():
        if name is not None and name not in COLUMNS:
            raise UserError(f"--conversations: columns without a store are {', '.join(COLUMNS)}; not {name}")
    return {feature: COLUMNS[name][1] for feature, name in columns.items() if name}


def paper_conversations(config: TrainConfig, count: int) -> list[Sample]:
    """Conversations with the lengths and proportions of the paper's corpora, evenly mixed; their arrays hold zeros."""
    widths = column_widths(config)
    ends = np.cumsum([thousands for thousands, *_ in CORPORA])
    samples = []
    for number in range(count):
        _, modality, still = CORPORA[int(np.searchsorted(ends, number * SPREAD % 1 * ends[-1], "right"))]
        patches = COLUMNS[config.visual][0] if config.visual else 0
        rows = {"temporal": 1 if still else config.frames, "spatial": patches, "audio": config.segments}
        arrays = {
            f: np.zeros((rows[f], widths[f]), np.float16) for f in FEATURES if f in FEATURES_OF[modality] & set(widths)
        }
        taken = sum(map(len, arrays.values()))
        ids = [ROW] * taken + [0] * (PROMPT + RESPONSE)
        tokens = Tokens(ids, [False] * (taken + PROMPT) + [True] * RESPONSE, [(modality, 0)])
        samples.append(Sample(tokens, arrays))
    return samples
