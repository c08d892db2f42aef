"""The usual padded batches, of the same conversations and through the same model as our packed ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.conversations import WIDTHS, lengths_of
from trainer.batch import Sample
from trainer.model import AudioVisualLM
from trainer.prompt import ROW


def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Pad to the longest: input_ids, attention_mask, labels (-100 where there is no loss), each [B, L]; each feature's
    rows [R, D], and where they stand, bool [B, L].
    """
    lengths = lengths_of(samples)
    shape = (len(samples), max(lengths))
    ids, labels = np.zeros(shape, np.int64), np.full(shape, -100, np.int64)
    rows: dict[str, list[Any]] = {name: [] for name in WIDTHS}
    at = {name: np.zeros(shape, bool) for name in WIDTHS}
    for b, (sample, n) in enumerate(zip(samples, lengths, strict=True)):
        ids[b, :n] = sample.tokens.ids[:n]
        labels[b, :n] = np.where(sample.tokens.answers[:n], ids[b, :n], -100)
        for modality, start in sample.tokens.media:
            first = start
            for name in WIDTHS:
                if name in sample.arrays and (name == "audio") <= (modality != "visual"):
                    rows[name].append(sample.arrays[name])
                    at[name][b, first : first + len(sample.arrays[name])] = True
                    first += len(sample.arrays[name])
    padded = {
        "input_ids": np.where(ids == ROW, 0, ids),
        "attention_mask": np.arange(shape[1]) < np.array(lengths)[:, None],
        "labels": labels,
        **{name: np.concatenate(r) if r else np.zeros((0, WIDTHS[name]), np.float16) for name, r in rows.items()},
        **{f"{name}_at": mask for name, mask in at.items()},
    }
    return {name: torch.from_numpy(array) for name, array in padded.items()}


class PaddedLM(torch.nn.Module):
    """The same model on padded batches: rows scattered into a rectangle, a mask, torch's attention.

    With `full`, logits at every position, as a Hugging Face model computes its loss; else at response positions alone.
    """

    def __init__(self, model: AudioVisualLM, full: bool) -> None:
        super().__init__()
        self.model, self.full = model, full

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **features: Any
    ) -> dict[str, torch.Tensor]:
        """The loss: summed over response tokens and divided by `num_items_in_batch`, or their mean without it."""
        llm = self.model.llm
        embedded = llm.get_input_embeddings()(input_ids)
        for name, projector in self.model.linears.items():
            projected = projector(features[name].float()).to(embedded.dtype)
            embedded = embedded.masked_scatter(features[f"{name}_at"][..., None], projected)
        read = {"inputs_embeds": embedded, "attention_mask": attention_mask, "use_cache": False}
        count = features.get("num_items_in_batch")
        if self.full:
            return {"loss": llm(**read, labels=labels, num_items_in_batch=count).loss}
        at = (labels[:, 1:] != -100).nonzero(as_tuple=True)
        logits = llm.get_output_embeddings()(llm.base_model(**read).last_hidden_state[at]).float()
        return {"loss": F.cross_entropy(logits, labels[:, 1:][at])}
