"""Packed against padded batches, and our loop against a Hugging Face Trainer.

    python -m benchmarks.training packed
    python -m benchmarks.training trainer

`packed` and `trainer` use SmolLM2-135M, as `python -m demo` makes it, and features of the paper's size: ViT-L/14 on 32
frames (32 + 256 rows; a still has 1 + 256) and CLAP on 4 segments. Contenders take turns on the same conversations in
the same order, with the same weights at the start, in bfloat16.
"""

from benchmarks.training.loops import contender, trainer
from benchmarks.training.packing import packed
from store.console import make_app, run

app = make_app("Training beside padded batches, and beside a Hugging Face Trainer.")
app.command()(packed)
app.command()(trainer)
app.command(hidden=True)(contender)

if __name__ == "__main__":
    run(app)
