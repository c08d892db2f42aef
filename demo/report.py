"""Ask the demo's model about unseen clips, with and without the modality that a question needs."""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

from serve.assistant import Assistant, Question
from serve.evals.exact import Asked, Score, exact_match
from store import Conversation, Modality, Storage, Turn, load_conversations
from store.console import Meter, console

NEEDS: dict[str, Modality] = {"sight": "visual", "sound": "audio", "both": "audio_visual"}
WITHHELD: dict[str, dict[str, Modality]] = {  # by kind of question and what is withheld: the modality given instead
    "sight": {"sight": "audio"},
    "sound": {"sound": "visual"},
    "both": {"sight": "audio", "sound": "visual"},
}


@dataclass(frozen=True)
class Row:
    """One row of the table: all questions of one text, with nothing or with one modality withheld."""

    kind: str
    question: str
    withheld: str
    score: Score
    chance: float


def ask_all(checkpoint: str, store: str, conversations: str) -> list[Row]:
    """Ask every held-out question as it is, and with each needed modality withheld."""
    assistant = Assistant.load(checkpoint)
    entries: list[Asked] = []
    chances: dict[str, float] = {}
    for conversation in load_conversations(Storage(store), conversations):
        arrays = assistant.features.load(store, str(conversation.key), ["visual", "audio"]).arrays
        kind = str(conversation.meta["kind"])
        for withheld, modality in {"nothing": NEEDS[kind], **WITHHELD[kind]}.items():
            turn = conversation.turns[0]
            group = json.dumps([kind, turn.instruction, withheld])
            chances[group] = _chance(conversation, withheld)
            question = Question((Turn(turn.instruction, modality, ""),), arrays)
            entries.append(Asked(question, turn.response, group))
    with Meter("asking", len(entries), "questions") as meter:
        scores, _ = exact_match(assistant, entries, on_batch=meter.advance)
    rows = []
    for group, score in scores.items():
        kind, question, withheld = json.loads(group)
        rows.append(Row(kind, question, withheld, score, chances[group]))
    return rows


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
            row.kind, row.question, row.withheld, f"{row.score.accuracy:.2f}", f"{row.chance:.2f}", str(row.score.total)
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
        "model is then asked the same question with the other modality only.",
        "",
        "| kind | question | withheld | accuracy | chance | questions |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r.kind} | {r.question} | {r.withheld} | {r.score.accuracy:.2f} | {r.chance:.2f} | {r.score.total} |"
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
    right.barh(places, [row.score.accuracy for row in rows], color=colours)
    right.scatter([row.chance for row in rows], places, marker="|", s=200, color="black", label="chance", zorder=3)
    right.set(xlim=(0, 1), xlabel="exact-match accuracy on held-out clips", title="Answers")
    right.set_yticks(places, labels, fontsize=6)
    right.invert_yaxis()
    right.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
