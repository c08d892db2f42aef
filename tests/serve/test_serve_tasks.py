"""Each benchmark, from the files it is published as to the questions that are asked, word for word."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from serve.evals.answers import key_of
from serve.evals.judge_settings import JudgeFile
from serve.evals.tasks import BUILT_IN, TASKS, Query, Task, TaskFile, load_tasks, queries
from store import Conversation, Settings, Turn, UserError, load_conversations, load_settings, parse_settings

REPO = Path(__file__).parents[2]
DOCS = REPO / "docs" / "evaluation.md"
BRIEF = "\nAnswer the question using a single word or phrase."
LETTER = "Question: {}\nOptions:\n{}\nAnswer with the letter of the right option."
BEST = "Question: {}\nOptions:\n{}\nOnly give the best option."


@pytest.fixture(scope="module")
def asked(planned, published):
    """Turn the set of a task, or other conversations, into its questions."""

    def ask(task: str, conversations: str | None = None) -> list[Query]:
        return queries(TASKS[task], load_conversations(planned, conversations or published.conversations_of(task)))

    return ask


def texts(made: list[Query]) -> list[str]:
    """The instructions of the asked turns."""
    return [query.turns[-1].instruction for query in made]


def rows(made: list[Query], *fields: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(query, field) for field in fields) for query in made]


SEEN, HEARD, BOTH = "visual", "audio", "audio_visual"
LISTED = "(A) at once\n(B) slowly\n(C) never\n(D) twice\n(E) in part"
PROMPTS = {
    "msrvtt-qa": (SEEN, ["what is red?", "who is {there}?", "what is green?"]),
    "msvd-qa": (SEEN, ["what fills the screen?", "how many colors are shown?"]),
    "activitynet-qa": (SEEN, ["is the screen red", "what color is it"]),
    "avsd": (BOTH, ["what color is it?", "is there a sound?", "does the color change?"]),
    "avsd-alone": (BOTH, ["what color is it?", "is there a sound?", "does the color change?"]),
    "avssd": (BOTH, ["Identify the event in the video."] * 2),
    "music-avqa": (
        BOTH,
        [f"Where is the left flute?{BRIEF}", f"How many sounds?{BRIEF}", f"How many violin are there?{BRIEF}"],
    ),
    "vatex": (SEEN, ["Describe this video in one sentence."] * 2),
    "valor": (BOTH, ["Describe what is seen and heard in this video in one sentence."] * 2),
    "avsd-comp": (BOTH, ["is there a sound?", "does the color change?"]),
    "favdbench": (BOTH, ["Describe in detail what is seen and heard in this video."] * 2),
    "next-qa": (
        SEEN,
        [
            LETTER.format("how does it turn green", LISTED),
            LETTER.format("what was there before green", "(A) blue\n(B) grey\n(C) red\n(D) black\n(E) white"),
            LETTER.format("what color is it", "(A) blue\n(B) grey\n(C) red\n(D) black\n(E) green"),
        ],
    ),
    "mvbench": (
        SEEN,
        [
            BEST.format("What happened?", "(A) It was red.\n(B) It was blue."),
            BEST.format("What came last?", "(A) Red.\n(B) Green.\n(C) Blue."),
            BEST.format("Why?", "(A) x\n(B) y"),
            BEST.format("How many?", "(A) 0\n(B) 1"),
        ],
    ),
    "videochatgpt-correctness": (SEEN, ["What is shown?", "Describe the video in detail."]),
    "videochatgpt-detail": (SEEN, ["What is shown?", "Describe the video in detail."]),
    "videochatgpt-context": (SEEN, ["What is shown?", "Describe the video in detail."]),
    "videochatgpt-temporal": (SEEN, ["What comes after red?"]),
    "videochatgpt-consistency": (
        SEEN,
        ["What comes first?", "Which color begins?", "What is seen?", "Which color is it?"],
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_prompts_word_for_word(asked, task):
    """A changed word changes scores, so it has to be changed here too; media stand in the first turn only."""
    made = asked(task)
    modality, prompts = PROMPTS[task]
    assert texts(made) == prompts
    for query in made:
        assert [turn.modality for turn in query.turns] == [modality] + ["text"] * (len(query.turns) - 1)
        assert query.turns[-1].response == ""
        assert query.references
        assert all(query.references)
    assert made == asked(task)


def test_every_task_has_a_published_set(published):
    assert set(published.SETS) == set(TASKS) == set(PROMPTS)


def test_free_questions_keep_their_answer_their_video_and_their_split(asked):
    assert rows(asked("msrvtt-qa"), "id", "question", "references", "cluster", "split") == [
        ("158581", "what is red?", ("screen",), "TestVideo-video7010-mp4", "test"),
        ("158582", "who is {there}?", ("nobody",), "TestVideo-video7010-mp4", "test"),
        ("158583", "what is green?", ("screen",), "TestVideo-video7011-mp4", "test"),
    ]
    assert rows(asked("msvd-qa"), "id", "references") == [("30933", ("green",)), ("30934", ("three",))]
    assert rows(asked("activitynet-qa"), "references", "groups") == [
        (("yes",), ("yes or no",)),
        (("blue",), ("color",)),
    ]


def test_a_dialog_is_asked_turn_by_turn_with_the_true_answers_before(asked):
    first, second, other = asked("avsd")
    assert [query.id for query in (first, second, other)] == ["7UPGT#1", "7UPGT#2", "8UPGT#1"]
    assert first.turns == (Turn("what color is it?", BOTH, ""),)
    assert second.turns == (Turn("what color is it?", BOTH, "red, then green"), Turn("is there a sound?", "text", ""))
    assert second.references == ("yes, a tone",)
    assert first.cluster == second.cluster != other.cluster
    alone = asked("avsd-alone")
    assert [query.turns for query in alone] == [(Turn(text, BOTH, ""),) for text in texts(alone)]
    assert rows(alone, "id", "references") == rows([first, second, other], "id", "references")


def test_other_forms_of_a_dialog_give_the_same_questions(asked):
    """SAVEBench's dialogs, and VideoLLaMA2's questions, whose ids repeat."""
    fields = ("question", "references", "turns")
    assert rows(asked("avsd", "avsd-savebench"), *fields) == rows(asked("avsd")[:2], *fields)
    flat = asked("avsd-alone", "avsd-videollama")
    assert rows(flat, *fields) == rows(asked("avsd-alone")[:2], *fields)
    assert rows(flat, "id", "occurrence") == [("7UPGT#1", 0), ("7UPGT#1", 1)]


def test_the_undisclosed_question_is_asked_after_its_dialog_and_has_all_references(asked):
    first, second = asked("avsd-comp")
    assert (first.id, second.id) == ("7UPGT", "8UPGT")
    assert first.turns == (Turn("what color is it?", BOTH, "red, then green"), Turn("is there a sound?", "text", ""))
    assert second.turns == (Turn("does the color change?", BOTH, ""),)
    assert first.references == ("yes, a tone", "there is a tone")
    assert second.references == ("no", "it stays blue")


def test_sound_sources_are_asked_for_in_all_forms(asked):
    assert rows(asked("avssd"), "id", "references", "split") == [
        ("---g-f_I2yQ_000001", ("people marching",), "test"),
        ("--0PQM4-hqg_000030", ("waterfall burbling, loud",), "test"),
    ]
    (other,) = asked("avssd", "avssd-savebench")
    assert other.question == "Identify the event in the video."
    assert other.references == ("People are marching.",)


def test_music_is_asked_by_both_senses_and_grouped_by_type(asked):
    """Audio questions too; an id that stands twice is told apart."""
    assert rows(asked("music-avqa"), "id", "occurrence", "question", "references", "groups") == [
        ("9", 0, "Where is the left flute?", ("right",), ("audio-visual", "audio-visual/location")),
        ("10", 0, "How many sounds?", ("two",), ("audio", "audio/counting")),
        ("10", 1, "How many violin are there?", ("more than ten",), ("visual", "visual/counting")),
    ]


def test_captions_are_references(asked):
    assert rows(asked("vatex"), "id", "references") == [
        ("Ptf_2VRj-V0_000122_000132", ("Red turns green.", "A red screen.")),
        ("-----------_000001_000011", ("A green screen.", "All is green.")),
    ]
    assert asked("valor")[0].references == ("With a low tone, red turns green.",)
    (paragraph,) = asked("favdbench")[1].references
    assert paragraph == "A screen is blue. Nothing moves on it. A high tone sounds all along."


def test_choices_keep_their_options_and_the_right_one(asked):
    """NExT-QA counts questions about what was before as questions about what comes next."""
    made = asked("next-qa")
    assert rows(made, "id", "right", "references", "groups", "split") == [
        ("4010069381_6", 0, ("at once",), ("C", "C/CH"), "val"),
        ("4010069381_7", 2, ("red",), ("T", "T/TN"), "val"),
        ("4882821564_6", 4, ("green",), ("D", "D/DO"), "val"),
    ]
    assert made[0].options == ("at once", "slowly", "never", "twice", "in part")
    assert made[0].question == "how does it turn green"
    assert made[0].cluster == made[1].cluster != made[2].cluster


def test_parts_of_one_video_are_one_cluster(asked):
    """Two questions about two parts of a film are no more independent than two about the whole."""
    made = asked("mvbench")
    assert len({query.key for query in made}) == 4
    star, clevrer = "video/star/Charades_v1_480/ZS9XR.mp4", "video/clevrer/video_validation/video_1.mp4"
    frames = "video/tvqa/frames_fps3_hq/friends_s03e09_seg02_clip_07"
    assert rows(made, "right", "groups", "cluster") == [
        (0, ("action_sequence",), star),
        (1, ("action_sequence",), star),
        (0, ("episodic_reasoning",), frames),
        (1, ("moving_count",), clevrer),
    ]
    assert TASKS["mvbench"].answer_prefix == "Best option:("
    assert TASKS["mvbench"].system.startswith("Carefully watch the video and pay attention to the cause and sequence")


def test_two_questions_with_one_answer_are_a_pair(asked):
    assert rows(asked("videochatgpt-consistency"), "id", "pair", "references") == [
        ("consistency_qa-0-Q1", "consistency_qa-0", ("Red.",)),
        ("consistency_qa-0-Q2", "consistency_qa-0", ("Red.",)),
        ("consistency_qa-1-Q1", "consistency_qa-1", ("Green.",)),
        ("consistency_qa-1-Q2", "consistency_qa-1", ("Green.",)),
    ]


def test_a_prompt_changes_without_planning_again(asked, planned):
    """What plan wrote into a turn is never asked."""
    changed = TASKS["next-qa"].model_copy(update={"prompt": "{options}\n{question}?", "modality": BOTH})
    made = queries(changed, load_conversations(planned, "next-qa"))
    assert made[0].turns == (Turn(f"{LISTED}\nhow does it turn green?", BOTH, ""),)


def test_stored_answers_outlive_all_that_does_not_shape_them(asked):
    """Three dimensions are judged on one set of answers; new names, groups and scorers ask nothing again."""
    name = "videochatgpt-generic"
    made = asked("videochatgpt-correctness")
    assert made == asked("videochatgpt-context")
    assert [key_of(TASKS["videochatgpt-correctness"], name, q) for q in made] == [
        key_of(TASKS["videochatgpt-context"], name, q) for q in made
    ]
    task, (query, *_) = TASKS["mvbench"], asked("mvbench")
    key = key_of(task, "mvbench", query)
    same = {"name": "x", "title": "x", "files": "x", "expected": {}, "scorer": "exact", "group_by": None, "paper": None}
    assert key_of(task.model_copy(update=same), "mvbench", query) == key
    shaping = {"answer_prefix": "", "system": None, "max_new_tokens": 1, "temperature": 0.5}
    changed = [task.model_copy(update={name: value}) for name, value in shaping.items()]
    turn = query.turns[0]
    turns = [replace(turn, instruction="x"), replace(turn, modality=BOTH), replace(turn, response="x")]
    keys = {key_of(other, "mvbench", query) for other in changed}
    keys |= {key_of(task, "mvbench", replace(query, turns=(other,))) for other in turns}
    keys |= {key_of(task, "mvbench", replace(query, **{field: value})) for field, value in
             {"key": "x", "id": "x", "occurrence": 1}.items()}  # fmt: skip
    keys |= {key_of(task, "other", query)}
    assert len(keys - {key}) == len(changed) + len(turns) + 4
    in_turns = {"form", "history", "prompt", "modality"}
    assert set(Task.model_fields) == {*shaping, *same, *in_turns, "dimension", "group_names", "cluster_by"}
    assert key_of(TASKS["msvd-qa"], "msvd-qa", asked("msvd-qa")[0]).prompt == "d403fb042c44e7b4"


def conversation(key: str | None = "k", turns: int = 1, **meta: object) -> Conversation:
    return Conversation("c", key, tuple(Turn(f"q{n}", "visual", f"a{n}") for n in range(turns)), meta)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("msvd-qa", conversation(captions=["x"]), r"field 'meta.question': expected a text"),
        ("msvd-qa", conversation(question="x"), r"field 'meta.answer': expected a text"),
        ("msvd-qa", conversation(turns=2), r"field 'meta.question': expected a text"),
        ("msvd-qa", conversation(key=None), r"field 'key': expected a media item; this conversation is text only"),
        ("vatex", conversation(question="x", answer="y"), r"field 'meta.captions': expected a list of texts"),
        ("vatex", conversation(captions=[]), r"field 'meta.captions': expected a list of texts"),
        ("mvbench", conversation(question="x", answer="y"), r"field 'meta.options': expected a list of texts"),
        (
            "mvbench",
            conversation(question="x", options=["a", "b"], answer_index=2),
            r"field 'meta.answer_index': expected a place from 0 to 1",
        ),
        ("mvbench", conversation(question="x", options=["a"] * 27, answer_index=2), r"expected at most 26 options"),
        (
            "mvbench",
            conversation(question="x", options=["a"], answer_index=0, task="t"),
            r"field 'meta.path': expected a text; meta has answer_index, options, question, task; change cluster_by",
        ),
        (
            "music-avqa",
            conversation(question="x", answer="y"),
            r"field 'meta.type': expected a text or number, or a list of these; .* answer, question; change group_by",
        ),
        ("music-avqa", conversation(kind="colour"), r"it is none of MUSIC-AVQA, .* planned from avqa-test\.json"),
        ("avsd", conversation(captions=["x"]), r"field 'turns': expected a dialog"),
        (
            "avsd-comp",
            conversation(undisclosed=["x"]),
            r"field 'meta.references': expected a list of texts, from a file of references beside that of the dialogs",
        ),
    ],
)
def test_a_conversation_that_lacks_what_its_task_needs_is_named(task, given, message):
    with pytest.raises(UserError, match=message) as error:
        queries(TASKS[task], [given])
    assert re.match(rf"task {task}: conversation 'c', field '", str(error.value))
    assert str(error.value).endswith(f"plan the data set again, or name other conversations ({task}=NAME)")


def test_half_a_pair_is_refused():
    """Its consistency would be judged on one prediction."""
    given = conversation(question="x", answer="y", question_id="p")
    with pytest.raises(UserError, match=r"task videochatgpt-consistency: pair 'p' has 1 of two questions"):
        queries(TASKS["videochatgpt-consistency"], [given])


OWN = {
    "name": "mine",
    "title": "Mine",
    "form": "question",
    "prompt": "{question}",
    "modality": "audio",
    "scorer": "exact",
}


def test_a_user_adds_tasks(tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text(yaml.safe_dump({"tasks": [OWN]}))
    tasks = load_tasks(path)
    assert list(tasks) == [*TASKS, "mine"]
    (query,) = queries(tasks["mine"], [conversation()])
    assert (query.turns, query.references) == ((Turn("q0", "audio", ""),), ("a0",))
    assert not tasks["mine"].judged


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "vatex"}, r"task 'vatex' is built in; choose another name"),
        ({"name": "my=task"}, r"field 'tasks.0.name': String should match pattern"),
        ({"prompt": "{questoin}"}, r"there is no {questoin}; known are {question} and {options}"),
        ({"form": "choice"}, r"form choice needs {options} in its prompt"),
        ({"form": "dialog", "prompt": "x"}, r"form dialog needs {question} in its prompt"),
        ({"prompt": "{question} {options}"}, r"form question has no {options}"),
        ({"form": "caption"}, r"form caption has no {question}"),
        ({"form": "pair"}, r"field 'tasks.0.dimension': consistency and form pair need each other"),
        ({"scorer": "choice"}, r"field 'tasks.0.scorer': scorer choice needs form choice"),
        ({"form": "quiz"}, r"field 'tasks.0.form': expected 'question', 'choice', 'caption', 'dialog'"),
        ({"scorer": "dimension"}, r"field 'tasks.0.dimension': scorer dimension needs one"),
        ({"dimension": "detail"}, r"field 'tasks.0.dimension': is for the scorer dimension only"),
        (
            {"promt": "x"},
            r"unknown field 'tasks.0.promt'; did you mean 'tasks.0.prompt'\? \(accepted: answer_prefix, cluster_by, ",
        ),
    ],
)
def test_a_wrong_task_is_one_line(tmp_path, changed, message):
    path = tmp_path / "tasks.yaml"
    path.write_text(yaml.safe_dump({"tasks": [OWN | changed]}))
    with pytest.raises(UserError, match=message) as error:
        load_tasks(path)
    assert "\n" not in str(error.value)


def test_a_name_stands_once(tmp_path):
    with pytest.raises(UserError, match="the name mine stands twice"):
        parse_settings(TaskFile, {"tasks": [OWN, OWN]}, "x")


def test_expected_counts_are_of_a_split():
    """A set whose split is unknown is compared with the only one there is, never with one of two."""
    assert TASKS["next-qa"].expects("val").count == 4996
    assert TASKS["next-qa"].expects("train") is None
    assert TASKS["next-qa"].expects("") is None
    assert TASKS["music-avqa"].expects("").count == 9129


def test_tasks_need_neither_torch_nor_the_engine():
    """Scores are made from answers where no model is installed."""
    code = "import sys, serve.evals.tasks; sys.exit(bool({'torch', 'ray', 'serve.engine'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


def shown(task: Task) -> str:
    """A task's row of the table in the docs."""

    def count(split: str) -> str:
        expected = task.expected[split]
        return f"{split}: {'unknown' if expected.count is None else f'{expected.count:,} ({expected.source})'}"

    prompt = task.prompt.replace("\n", "⏎")
    figures = ", ".join(f"{metric} {figure:g}" for metric, figure in task.paper.figures.items())
    scorer = task.scorer + (f", {task.dimension}" if task.dimension else "")
    senses = task.modality.replace("_", ", ")
    cells = [
        f"`{task.name}`", task.files, "; ".join(map(count, task.expected)), f"`{prompt}`", senses,
        str(task.max_new_tokens), scorer, f"{figures}. {task.paper.note}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_the_docs_show_every_task():
    """The table is what `shown` makes of the tasks: copy what this says is missing."""
    text = DOCS.read_text()
    assert "\n".join(map(shown, TASKS.values())) in text


def test_the_examples_of_the_docs_are_accepted(tmp_path):
    tasks, judges = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(parse_settings(JudgeFile, yaml.safe_load(judges), "docs").judges) == 2
    (tmp_path / "tasks.yaml").write_text(tasks)
    own = [task for name, task in load_tasks(tmp_path / "tasks.yaml").items() if name not in TASKS]
    assert own
    named = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", DOCS.read_text(), re.MULTILINE)
    assert set(Task.model_fields) <= set(re.findall(r"\w+", " ".join(named)))


def test_the_file_of_tasks_is_installed():
    assert issubclass(TaskFile, Settings)
    assert load_settings(TaskFile, BUILT_IN).tasks == tuple(TASKS.values())
    assert "evals/*.yaml" in (REPO / "setup.cfg").read_text()
