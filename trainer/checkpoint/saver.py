"""Saves states during training: each rank copies its part to memory, and a thread writes it."""

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from store import UserError
from store.publish import TEMPORARY, publish, publishing
from trainer.checkpoint.states import State, States
from trainer.checkpoint.tensors import untrained
from trainer.engine import MOMENTS, Engine


class Saver:
    """Saves states during training, one at a time."""

    def __init__(self, states: States, engine: Engine, keep: int) -> None:
        self._states, self._engine, self._keep = states, engine, keep
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def save(self, state: State) -> None:
        """Copy this rank's part now, and write it in a thread once the previous state is written."""
        self.finish()
        tensors: dict[str, torch.Tensor] = {}
        for fragment in self._engine.fragments():
            at = f"{fragment.name}@{fragment.start}"
            tensors[f"weight/{at}"] = _copy(fragment.weight)
            tensors |= {f"{kind}/{at}": _copy(fragment.moments[kind]) for kind in MOMENTS}
        others = dict(untrained(self._engine.model))
        with self._engine.gathered(list(others.values())):
            if self._engine.rank == 0:
                tensors |= {f"weight/{name}@0": _copy(tensor.view(-1)) for name, tensor in others.items()}
        self._writing = self._pool.submit(self._write, state, tensors)

    def finish(self) -> None:
        """Wait until the last state is written."""
        if self._writing:
            self._writing.result()

    def close(self) -> None:
        """Finish writing and end the thread."""
        self._pool.shutdown()

    def _write(self, state: State, tensors: dict[str, torch.Tensor]) -> None:
        try:
            self._write_parts(state, tensors)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self._states.path(state.step)}: cannot be written: {error}; make room, then give the "
                "same command again: it goes on from the state before"
            ) from None

    def _write_parts(self, state: State, tensors: dict[str, torch.Tensor]) -> None:
        folder = self._states.folder / f"{TEMPORARY}{state.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        rank, ranks = self._engine.rank, self._engine.ranks
        part = folder / f"part-{rank:05d}-of-{ranks:05d}.safetensors"
        with publishing(part) as temporary:
            save_file(tensors, temporary)
        if rank:
            return
        while len(list(folder.glob("part-*.safetensors"))) < ranks:
            time.sleep(0.05)
        (folder / "state.json").write_text(state.model_dump_json(indent=2))
        publish(folder, self._states.path(state.step))
        kept = {*self._states.steps()[-self._keep :], self._states.best()}
        for step in set(self._states.steps()) - kept:
            shutil.rmtree(self._states.path(step))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
