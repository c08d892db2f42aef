"""`python -m demo`: the whole way on two cores: media files, Ray jobs, both stages, answers about unseen clips."""

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
    corpus, store = folder / "corpus", folder / "store"
    seconds: dict[str, float] = {}
    encoders = PRETRAINED if pretrained else RANDOM
    console.print(encoders.replace("**", ""))

    def timed(name: str, *words: object) -> None:
        console.rule(name)
        console.print(f"$ python -m {' '.join(map(str, words))}")
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", *map(str, words)], check=False)
        seconds[name] = time.monotonic() - began
        if done.returncode:
            sys.exit(done.returncode)

    began = time.monotonic()
    console.rule("a corpus of real files, and the LLM")
    if not (corpus / "heldout.json").exists():
        make_corpus(corpus)
    make_llm(llm)
    seconds["corpus and LLM"] = time.monotonic() - began

    config = f"featurize/configs/demo{'-pretrained' if pretrained else ''}.yaml"
    source = f"sources.0.store={store}"
    stage1, stage2 = folder / "stage1", folder / "stage2"
    columns = ["visual=clip-vit-b-32"] if pretrained else []
    timed(
        "plan",
        "featurize",
        "plan",
        corpus / "train.json",
        corpus / "heldout.json",
        "--store",
        store,
        "--shard-size",
        32,
    )
    timed("featurize", "featurize", "run", "--store", store, "--config", config)
    timed(
        "stage 1",
        "trainer",
        "train",
        "trainer/configs/demo-stage1.yaml",
        f"model={llm}",
        source,
        f"output={stage1}",
        "overwrite=true",
        *columns,
    )
    timed(
        "stage 2", "trainer", "train", "trainer/configs/demo-stage2.yaml",
        f"model={stage1}/checkpoint", source, f"output={stage2}", "overwrite=true", *columns,
    )  # fmt: skip
    console.rule("questions about clips that were not trained on")
    from demo.report import ask_all, print_table, write_report

    began = time.monotonic()
    rows = ask_all(f"{stage2}/checkpoint", str(store), "heldout")
    seconds["questions"] = time.monotonic() - began
    print_table(rows)
    write_report(folder, rows, [stage1, stage2], seconds, encoders)
    console.print(encoders.replace("**", ""))
    console.print(f"{sum(seconds.values()):.0f} s in all; report: {folder}/report.md, plot: {folder}/report.png")
    clip = corpus / "clips" / "heldout000.mp4"
    console.print("\nNext:")
    ask = f"python -m serve chat --checkpoint {stage2}/checkpoint --media {clip}"
    console.print(f'  {ask} --listen "Is the sound low, middle or high?"')
    console.print(f"  python -m store ls {store}")
    console.print(f"  tensorboard --logdir {folder}")


def main() -> None:
    """Entry point."""
    run(app)


if __name__ == "__main__":
    main()
