"""`python -m demo`: the whole pipeline on two cores: media files, features, both stages, answers about unseen clips."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from demo.corpus import make_corpus
from demo.llm import make_llm
from store.console import console, make_app, run

RANDOM = (
    "The encoders of this demo have **seeded random weights** (CLIP's and CLAP's architectures, no training): it shows "
    "that every part works, not how good pretrained features are. `make demo PRETRAINED=1` uses published weights."
)
PRETRAINED = "The encoders have published weights: CLIP ViT-B/32 of OpenAI and LAION's CLAP."
app = make_app("Run the whole way on a corpus made by program.")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    llm: Annotated[Path, typer.Option(help="Where the LLM's folder is, or is made.")] = Path("build/smollm2"),
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Use published encoder weights (a hub).")] = False,
) -> None:
    """Make a corpus, featurize it, train both stages, and report on held-out clips."""
    corpus, store, stages = folder / "corpus", folder / "store", [folder / "stage1", folder / "stage2"]
    seconds: dict[str, float] = {}
    encoders = PRETRAINED if pretrained else RANDOM
    console.print(encoders.replace("**", ""))
    console.rule("a corpus of real files, and the LLM")
    start = time.monotonic()
    if not (corpus / "heldout.json").exists():
        make_corpus(corpus)
    make_llm(llm)
    seconds["corpus and LLM"] = time.monotonic() - start

    annotations = (corpus / "train.json", corpus / "heldout.json")
    _timed(seconds, "plan", "featurize", "plan", *annotations, "--store", store, "--shard-size", 32)
    config = f"featurize/configs/demo{'-pretrained' if pretrained else ''}.yaml"
    _timed(seconds, "featurize", "featurize", "run", "--store", store, "--config", config)
    import torch

    from trainer.flops import has_bfloat16

    is_bfloat16_slow = not has_bfloat16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    models = (llm, stages[0] / "checkpoint")
    for number, (model, stage) in enumerate(zip(models, stages, strict=True), 1):
        if (stage / "checkpoint").exists():
            console.print(f"stage {number} is finished: {stage}/checkpoint; remove {stage} to train it again")
            continue
        words = [f"model={model}", f"sources.0.store={store}", f"output={stage}"]
        words += ["visual=clip-vit-b-32"] if pretrained else []
        words += ["precision=float32"] if is_bfloat16_slow else []
        _timed(seconds, f"stage {number}", "trainer", "train", f"trainer/configs/demo-stage{number}.yaml", *words)
    console.rule("questions about clips that were not trained on")
    from demo.report import ask_all, print_table, write_report

    start = time.monotonic()
    rows = ask_all(f"{stages[1]}/checkpoint", str(store), "heldout", stages[1] / "answers")
    seconds["questions"] = time.monotonic() - start
    print_table(rows)
    write_report(folder, rows, stages, seconds, encoders)
    console.print(encoders.replace("**", ""))
    console.print(f"{sum(seconds.values()):.0f} s in this call; report: {folder}/report.md, plot: {folder}/report.png")
    clip = corpus / "clips" / "heldout000.mp4"
    console.print("\nNext:")
    avllm, tensorboard = map(_typed, ("avllm", "tensorboard"))
    ask = f"{avllm} serve chat --checkpoint {stages[1]}/checkpoint --media {clip}"
    console.print(f'  {ask} --listen "Is the sound low, middle or high?"')
    console.print(
        f"  {avllm} serve api --checkpoint {stages[1]}/checkpoint --store demo={store}  # and open its address"
    )
    console.print(f"  {avllm} store ls {store}")
    console.print(f"  {tensorboard} --logdir {folder}")


def _typed(command: str) -> str:
    """A command of this environment as a shell finds it: by its path where the environment is not activated."""
    path = Path(sys.executable).parent / command
    if shutil.which(command) == str(path):
        return command
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _timed(seconds: dict[str, float], name: str, *words: object) -> None:
    """Run one of our commands and note its seconds; exit with its status if it fails."""
    console.rule(name)
    console.print(f"$ python -m {' '.join(map(str, words))}")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *map(str, words)], check=False)
    seconds[name] = time.monotonic() - start
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Entry point."""
    run(app, "stopped; the same command goes on")


if __name__ == "__main__":
    main()
