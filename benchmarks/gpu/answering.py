"""Generation speed of a model of Vicuna-7B's shape with random weights, on batches of questions."""

import numpy as np
import torch

from benchmarks.conversations import WIDTHS, K, T, random_arrays
from benchmarks.gpu.llms import build_llm, shape_of, word_tokenizer
from benchmarks.gpu.report import Report, wait_for
from serve.assistant import Assistant, Question
from serve.engine import Limits
from store import Turn
from trainer.checkpoint.info import CheckpointInfo
from trainer.model import AudioVisualLM
from trainer.prompt import PromptFormat

AT_ONCE = (1, 16, 64)


def measure(report: Report) -> None:
    """Measure tokens a second at each batch size, and check that every question gets an answer."""
    import time

    tokens = 4 if report.tiny else 64
    shape = shape_of("tiny" if report.tiny else "7B")
    dtype = torch.float32 if report.device.type == "cpu" else torch.bfloat16
    model = AudioVisualLM(build_llm(shape, report.device, dtype, "sdpa"), WIDTHS).to(dtype)
    info = CheckpointInfo(frames=T, segments=K, columns={}, builds={}, prompt=PromptFormat(), stage=2, steps=0)
    assistant = Assistant.of(model, word_tokenizer(), info)
    rng = np.random.default_rng(0)
    arrays = random_arrays("audio_visual", rng)
    question = Question((Turn("the man is on the water with a dog", "audio_visual", ""),), arrays)
    for count in AT_ONCE:
        if report.tiny and count > 16:
            continue
        assistant.answer([question] * count, Limits(2))
        wait_for(report.device)
        start = time.perf_counter()
        answers = assistant.answer([question] * count, Limits(tokens))
        wait_for(report.device)
        taken = time.perf_counter() - start
        report.measured(f"{count} questions at once, {tokens} tokens each: tokens/s",
                        f"{count * tokens / taken:.0f} ({count / taken:.2f} answers/s)")  # fmt: skip
        report.fact(f"{count} questions at once: answers", len(answers), str(count), len(answers) == count)
