"""`avllm serve`: chat with a trained checkpoint about a clip, serve it to programs, or evaluate it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.console import Console
from rich.text import Text

from serve.checks import (
    ORDER,
    check_checkpoint,
    check_item,
    check_medium,
    check_output,
    check_packages,
    check_store,
)
from serve.questions import check_tokens, count_answered, read_questions, senses_by_tokens
from store import Sense, UserError, check_conversations, parse_settings
from store.console import console, make_app, make_table, run
from store.settings import override

if TYPE_CHECKING:
    from serve.assistant import Assistant

app = make_app("Ask a trained checkpoint.")


@app.callback()
def serve() -> None:
    """Ask a trained checkpoint."""


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="What to ask; without it, a dialogue begins.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Folder of a checkpoint.")] = ...,  # type: ignore[assignment]
    media: Annotated[str | None, typer.Option(help="A raw video, image or sound file.")] = None,
    store: Annotated[str | None, typer.Option(help="A store with cached features; with --key.")] = None,
    key: Annotated[str | None, typer.Option(help="The item's key in the store.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Let it see.")] = False,
    listen: Annotated[bool, typer.Option("--listen", help="Let it hear.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of sampling; 0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1, help="Sample from the likeliest tokens of this sum.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of sampling; else each answer has another.")] = None,
    system: Annotated[str | None, typer.Option(help="System text; else the checkpoint's.")] = None,
    vllm: Annotated[str | None, typer.Option(help="URL of a vLLM server of this checkpoint (docs/serving.md).")] = None,
) -> None:
    """Ask about a raw file, or about cached features. Without --watch and --listen: by every sense that the item has.

    A token in a question (<VIS>, <AUD>, <AUD_VIS>) says by which sense it asks.
    """
    if (media is None) == (store is None) or (store is None) != (key is None):
        raise UserError("give either --media FILE, or --store STORE with --key KEY (avllm store keys lists them)")
    chosen: list[Sense] = [*(["visual"] if watch else []), *(["audio"] if listen else [])]  # type: ignore[list-item]
    chosen = _asked_by(question or "", chosen)
    check_packages("av")
    info = check_checkpoint(checkpoint)
    if media:
        check_medium(media, info, chosen)
    if store and key:
        check_item(store, key, info, chosen)
    with _load(checkpoint, vllm) as assistant:
        for sense in (chosen or assistant.features.senses) if media else []:
            _tell(f"loading the {sense} encoder")
            assistant.features.encoder(sense)
        _tell(f"encoding {media}" if media else f"reading {key}")
        arrays = assistant.features.perceive(media, store, key, chosen)
        from serve.chat import Chat
        from serve.engine import Limits

        chat = Chat(assistant, arrays, Limits(max_new_tokens, temperature, top_p), seed, system)
        if question is not None:
            chat.say(question)
        else:
            chat.talk()


def _asked_by(question: str, chosen: list[Sense]) -> list[Sense]:
    """The senses of a question's tokens, if it has any, else those that the options choose."""
    check_tokens(question)
    senses = senses_by_tokens(question)
    if lacking := [sense for sense in senses if chosen and sense not in chosen]:
        option = "--watch" if lacking[0] == "visual" else "--listen"
        raise UserError(f"a token in the question asks by {lacking[0]}: add {option}, or give neither option")
    return chosen or senses


def _load(checkpoint: str, vllm: str | None) -> "Assistant":
    """Load a checkpoint, once its server is known to answer, and tell what is waited for."""
    if vllm:
        from serve.vllm import served

        served(vllm)
    _tell(f"loading {checkpoint}")
    from serve.assistant import Assistant  # after the checks: it takes seconds to import torch

    return Assistant.load(checkpoint, vllm)


def _tell(line: str) -> None:
    """Tell what is waited for, apart from the answers."""
    Console(stderr=True, soft_wrap=True).print(Text(line, "dim"))


@app.command()
def answer(
    questions: Annotated[
        Path,
        typer.Option(
            "--in", help='JSON lines: {"key": ..., "question": ...}, or "media", a raw file, in place of a key.'
        ),
    ],
    answers: Annotated[Path, typer.Option("--out", help="JSON lines of answers, in the same order.")],
    checkpoint: Annotated[str, typer.Option(help="Folder of a checkpoint.")],
    store: Annotated[str | None, typer.Option(help="A store with the features of the keys.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Of sampling; 0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=1e-6, max=1, help="Sample from the likeliest tokens of this sum.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling; the line's number is added.")] = 0,
    vllm: Annotated[str | None, typer.Option(help="URL of a vLLM server of this checkpoint (docs/serving.md).")] = None,
) -> None:
    """Answer a file of questions in parallel. To resume after a stop, repeat the command."""
    lines = read_questions(questions, store is not None)
    check_output(answers)
    check_packages("av")
    info = check_checkpoint(checkpoint)
    if store:
        check_store(store, info)
    if lines and count_answered(answers, lines) == len(lines):
        console.print(f"{answers}: all {len(lines)} questions were answered before", markup=False)
        return
    with _load(checkpoint, vllm) as assistant:
        from serve.answers import answer_lines
        from serve.engine import Limits

        answer_lines(assistant, lines, answers, store, Limits(max_new_tokens, temperature, top_p, seed))


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    store: Annotated[str, typer.Argument(help="The store of the tasks' conversations and features.")],
    tasks: Annotated[list[str], typer.Argument(help="Tasks: NAME, or NAME=CONVERSATIONS if these have another name.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of answers and reports; else `evaluation` beside the checkpoint.")
    ] = None,
    only: Annotated[
        Literal["answers", "scores"] | None, typer.Option(help="Ask and do not score, or score what was answered.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task, spread evenly; its score is then partial.")
    ] = None,
    failed: Annotated[
        Literal["wrong", "left-out"], typer.Option(help="How questions count whose features cannot be used.")
    ] = "wrong",
    tasks_file: Annotated[Path | None, typer.Option("--tasks", help="YAML with tasks of your own.")] = None,
    vllm: Annotated[str | None, typer.Option(help="URL of a vLLM server of this checkpoint (docs/serving.md).")] = None,
    judge: Annotated[
        list[str] | None, typer.Option(help="URL of an OpenAI-style server that judges; may be given several times.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge, as its server calls it.")] = None,
    judge_set: Annotated[
        list[str] | None, typer.Option(help="FIELD=VALUE of its settings, such as key_env=OPENAI_API_KEY.")
    ] = None,
    protocol: Annotated[
        Literal["avllm", "video-chatgpt"], typer.Option(help="What the judge is asked, and how it is read.")
    ] = "avllm",
    judges: Annotated[Path | None, typer.Option(help="YAML of several judges, in place of --judge.")] = None,
    anchors: Annotated[Path | None, typer.Option(help="YAML of answers with known verdicts, in place of ours.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="File of the judges' replies, which evaluations may share.")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help="Write what judges are to be asked into a folder, and read replies there.")
    ] = None,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Show questions, hours by a sample, the judge's cost, and leaks; ask no judge."),
    ] = False,
) -> None:
    """Ask benchmarks and report their scores; a killed evaluation goes on where it stopped.

    Processes that torchrun starts share the questions. docs/evaluation.md lists the tasks.
    """
    from serve.evals import run
    from serve.evals.judge import make_judging

    if not judge and (judge_model or judge_set):
        raise UserError("--judge-model and --judge-set are for --judge URL")
    if not judge and not judges and (ledger or batch or anchors):
        raise UserError("--ledger, --batch and --anchors are for --judge URL or --judges FILE")
    if judge and judges:
        raise UserError("give either --judge URL, or --judges FILE")
    judging = None
    if judge or judges:
        judging = make_judging(
            judge or [],
            judge_model,
            judge_set or [],
            protocol,
            file=judges,
            ledger=ledger,
            batch=batch,
            anchors=anchors,
        )
    if dry:
        from serve.evals.dry_run import dry_run

        dry_run(
            str(checkpoint),
            store,
            tasks,
            out=out,
            only=only,
            limit=limit,
            tasks_file=tasks_file,
            vllm=vllm,
            judging=judging,
        )
        return
    run.evaluate(
        str(checkpoint),
        store,
        tasks,
        out=out,
        only=only,
        limit=limit,
        failed=failed,
        tasks_file=tasks_file,
        vllm=vllm,
        judging=judging,
    )


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A: folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(help="B: another of the same questions.")],
    tasks: Annotated[list[str] | None, typer.Argument(help="Tasks; without any, all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of a report with samples of what changed.")] = None,
) -> None:
    """Compare two evaluations question by question: differences with intervals, and what became right or wrong."""
    from serve.evals.compare import compare as compare_folders
    from serve.evals.comparison_report import say_comparison, write_comparison
    from serve.evals.folder import read_run

    if out:
        check_output(out, is_folder=True)
    comparisons = compare_folders(first, second, tasks or [])
    say_comparison(comparisons)
    if out:
        write_comparison(out, comparisons, {"A": read_run(first), "B": read_run(second)})


@app.command()
def table(
    folders: Annotated[list[Path], typer.Argument(help="Folders of evaluations, a row each.")],
    out: Annotated[Path | None, typer.Option(help="Markdown file for the same.")] = None,
) -> None:
    """Show evaluations as rows of the paper's tables, with the paper's own row."""
    from serve.evals.paper_tables import show_tables

    if out:
        check_output(out)
    show_tables(folders, out)


@app.command()
def tasks(
    tasks_file: Annotated[Path | None, typer.Option("--tasks", help="YAML with tasks of your own.")] = None,
) -> None:
    """List the tasks that `evaluate` knows."""
    from serve.evals.tasks import TASKS, load_tasks

    table = make_table("task", "title", "planned from", "scorer")
    for task in (load_tasks(tasks_file) if tasks_file else TASKS).values():
        table.add_row(task.name, task.title, task.files, task.scorer)
    console.print(table)


@app.command()
def heldout(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    store: Annotated[str, typer.Argument(help="The store of the conversations' media.")],
    conversations: Annotated[str, typer.Argument(help="Their name in the store.")],
    ask: Annotated[str | None, typer.Option(help="Ask audio-visual ones by one sense: visual or audio.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all that was judged, as JSON.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Conversations asked; all without it.")] = None,
) -> None:
    """Loss on held-out conversations, and answers that would be given word for word. Nothing is generated."""
    sense = next((s for s in get_args(Sense) if s == ask), None)
    if ask is not None and sense is None:
        raise UserError(f"--ask {ask}: accepted: {', '.join(get_args(Sense))}")
    if out:
        check_output(out)
    info = check_checkpoint(checkpoint, ORDER)
    check_conversations(check_store(store, info, order=ORDER), conversations)
    from serve.evals.held_out import evaluate as evaluate_checkpoint  # after the checks: it imports torch

    evaluate_checkpoint(checkpoint, store, conversations, sense, out, limit)


@app.command()
def api(
    limits: Annotated[
        list[str] | None, typer.Argument(help="Other settings, FIELD=VALUE; docs/serving.md lists them.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Folder of a checkpoint.")] = ...,  # type: ignore[assignment]
    store: Annotated[
        list[str] | None, typer.Option(help="LABEL=URL of a store whose items can be asked about; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; one that other machines reach needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port.")] = 8000,
    vllm: Annotated[str | None, typer.Option(help="URL of a vLLM server of this checkpoint (docs/serving.md).")] = None,
    key_file: Annotated[
        str | None, typer.Option(help="File of API keys, one a line; without it, the variable AVLLM_API_KEY.")
    ] = None,
) -> None:
    """Serve a checkpoint until Ctrl-C: a page for people, and OpenAI's API for programs."""
    from serve.api.listening import check_exposure, listen, load_keys
    from serve.api.settings import ApiSettings

    data = {"checkpoint": checkpoint, "stores": _labelled(store or []), "host": host, "port": port, "vllm": vllm}
    for word in limits or []:
        override(data, word)
    settings, keys = parse_settings(ApiSettings, data, "serve api"), load_keys(key_file)
    check_exposure(settings, keys)
    check_packages("av", "starlette", "uvicorn")
    info = check_checkpoint(checkpoint)
    from serve.api.clips.cache import check_folder  # after the packages that these take
    from serve.vllm import served

    for url in settings.stores.values():
        check_store(url, info)
    check_folder(settings.cache)
    if settings.vllm:
        served(settings.vllm)
    with listen(settings) as listener:
        console.print(f"loading {checkpoint}", markup=False)
        from serve.api.server import serve as serve_api  # after the checks: it takes seconds to import torch

        serve_api(settings, keys, listener)


def _labelled(words: list[str]) -> dict[str, str]:
    """URLs by label, from LABEL=URL."""
    stores = {}
    for word in words:
        label, _, url = word.partition("=")
        if not url or not label.replace("-", "").replace("_", "").isalnum() or label in stores:
            raise UserError(f"--store {word}: expected LABEL=URL, each label once, of letters, digits, - and _")
        stores[label] = url
    return stores


def main() -> None:
    """Entry point."""
    run(app, extra="serve")


if __name__ == "__main__":
    main()
