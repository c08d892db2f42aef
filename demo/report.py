"""Ask the demo's model about unseen clips, with and without the modality that a question needs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

from serve.assistant import Assistant
from serve.evals.answers import Answer, AnswerFile, Key, key_of, read_answers
from serve.evals.ask import Asked, ask
from serve.evals.matching import matches
from serve.evals.statistics import Estimate, percentage, shown
from serve.evals.tasks import Query, Task
from store import Conversation, Modality, Storage, Turn, load_conversations
from store.console import Meter, console

NEEDS: dict[str, Modality] = {"sight": "visual", "sound": "audio", "both": "audio_visual"}
WITHHELD: dict[str, dict[str, Modality]] = {  # by kind of question and what is withheld: the modality given instead
    "sight": {"sight": "audio"},
    "sound": {"sound": "visual"},
    "both": {"sight": "audio", "sound": "visual"},
}
TASK = Task(
    name="demo",
    title="The demo's questions",
    form="question",
    prompt="{question}",
    modality="text",  # each question says its own
    max_new_tokens=32,
    scorer="exact",
)


@dataclass(frozen=True)
class Row:
    """One row of the table: all questions of one text, with nothing or with one modality withheld.

    Attributes:
        accuracy: in percent.
    """

    kind: str
    question: str
    withheld: str
    accuracy: Estimate
    questions: int
    chance: float


def ask_all(checkpoint: str, store: str, conversations: str, folder: Path) -> list[Row]:
    """Ask every held-out question as it is, and with each needed modality withheld; answers are kept in a folder."""
    made = [asked for c in load_conversations(Storage(store), conversations) for asked in _queries(c)]
    asked = [Asked(TASK, query, key_of(TASK, conversations, query)) for query, _ in made]
    answers = read_answers(folder) if folder.exists() else {}
    left = [each for each in asked if each.key not in answers]
    assistant = Assistant.load(checkpoint)
    with AnswerFile(folder, 0, 1) as file, Meter("asking", len(left), "questions") as meter:

        def keep(key: Key, answer: Answer) -> None:
            file.write(key, answer)
            meter.advance(1)

        ask(assistant, store, left, keep)
    assistant.close()
    answers = read_answers(folder)
    right: dict[tuple[str, ...], list[tuple[float, str, float]]] = {}
    for each, (query, chance) in zip(asked, made, strict=True):
        is_right = matches(answers[each.key].reply, query.references[0])
        right.setdefault(query.groups, []).append((100.0 * is_right, query.cluster, chance))
    rows = []
    for (kind, question, withheld), scored in right.items():
        values, clips, chances = zip(*scored, strict=True)
        accuracy = percentage(np.array(values), clips)
        rows.append(Row(kind, question, withheld, accuracy, len(values), chances[0]))
    return rows


def _queries(conversation: Conversation) -> Iterator[tuple[Query, float]]:
    """A question with nothing and with each modality withheld, and the accuracy of the best guess."""
    kind, (turn, *_) = str(conversation.meta["kind"]), conversation.turns
    for withheld, modality in {"nothing": NEEDS[kind], **WITHHELD[kind]}.items():
        query = Query(
            id=conversation.id,
            key=str(conversation.key),
            turns=(Turn(turn.instruction, modality, ""),),
            question=turn.instruction,
            references=(turn.response,),
            cluster=str(conversation.key),
            groups=(kind, turn.instruction, withheld),
        )
        yield query, 100 * _chance(conversation, withheld)


def _chance(conversation: Conversation, withheld: str) -> float:
    """The accuracy of the best guess that does not use what is withheld.

    A both-kind question with one modality withheld can still be half answered by the other, so its chance is that of
    guessing the withheld half only.
    """
    if conversation.meta["kind"] == "both" and withheld != "nothing":
        return 1 / int(str(conversation.meta[f"{withheld}_choices"]))
    return 1 / int(str(conversation.meta["choices"]))


def print_table(rows: list[Row]) -> None:
    """Show the accuracies on the terminal."""
    table = Table("kind", "question", "withheld", "accuracy", "chance", "questions")
    for row in rows:
        table.add_row(
            row.kind, row.question, row.withheld, shown(row.accuracy), f"{row.chance:.1f}", str(row.questions)
        )
    console.print(table)


def write_report(folder: Path, rows: list[Row], stages: list[Path], seconds: dict[str, float], encoders: str) -> None:
    """Write `report.md`, and `report.png` with the loss curves and the accuracy bars."""
    _plot(folder / "report.png", rows, stages)
    lines = [
        "# The demo's report",
        "",
        encoders,
        "",
        "All clips asked about here were kept out of training. `withheld` says what the model was not given: the same",
        "model is then asked the same question with the other modality only. Accuracies are in percent, with 95%",
        "intervals by bootstrap over clips; where all answers are right, or all are wrong, they are Wilson's.",
        "",
        "| kind | question | withheld | accuracy | chance | questions |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r.kind} | {r.question} | {r.withheld} | {shown(r.accuracy)} | {r.chance:.1f} | {r.questions} |"
            for r in rows
        ),
        "",
        "![losses and accuracies](report.png)",
        "",
        "| step | seconds of the last call |",
        "| --- | --- |",
        *(f"| {name} | {taken:.0f} |" for name, taken in seconds.items()),
        "",
    ]
    (folder / "report.md").write_text("\n".join(lines))


def _plot(path: Path, rows: list[Row], stages: list[Path]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
    start = 0
    for stage in stages:
        log = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
        left.plot([start + entry["step"] for entry in log], [entry["loss"] for entry in log], label=stage.name)
        start += len(log)
    left.set(xlabel="step", ylabel="loss (nats a response token)", title="Training", yscale="log")
    left.legend()
    labels = [f"{r.question}\n" + ("as asked" if r.withheld == "nothing" else f"{r.withheld} withheld") for r in rows]
    colours = ["tab:blue" if row.withheld == "nothing" else "tab:gray" for row in rows]
    places = range(len(rows))
    right.barh(places, [row.accuracy.value for row in rows], color=colours)
    right.hlines(places, [row.accuracy.low for row in rows], [row.accuracy.high for row in rows], color="black", lw=1)
    right.scatter([row.chance for row in rows], places, marker="|", s=200, color="black", label="chance", zorder=3)
    right.set(xlim=(0, 100), xlabel="exact-match accuracy on held-out clips (%), 95% interval", title="Answers")
    right.set_yticks(places, labels, fontsize=6)
    right.invert_yaxis()
    right.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
