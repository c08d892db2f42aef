import pytest
from transformers import AutoTokenizer

from store import Turn
from trainer.prompt import ROW, PromptFormat, tokenize, tokenize_all

ROWS = {"text": 0, "visual": 3, "audio": 2, "audio_visual": 5}
TURNS = (
    Turn("What colour?", "visual", "red"),
    Turn("And the sound?", "audio", "a low hum"),
    Turn("Sure?", "text", "yes"),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llm):
    return AutoTokenizer.from_pretrained(tiny_llm)


def test_the_text_is_the_papers_figure_4(tokenizer):
    """Without it every published prompt and ours would differ."""
    tokens = tokenize(TURNS, ROWS, tokenizer, PromptFormat())
    text = tokenizer.decode([i for i in tokens.ids if i != ROW])
    assert text == (
        "System: A chat between a curious human and a video assistant.\n Human: What colour?\n Assistant: red</s>"
        "\n Human: And the sound?\n Assistant: a low hum</s>\n Human: Sure?\n Assistant: yes</s>"
    )


def test_only_responses_and_their_ends_are_learnt(tokenizer):
    """A loss on instructions would teach the model to ask; none on the end, never to stop."""
    tokens = tokenize(TURNS, ROWS, tokenizer, PromptFormat())
    learnt = [i for i, answer in zip(tokens.ids, tokens.answers, strict=True) if answer]
    assert tokenizer.decode(learnt) == " red</s> a low hum</s> yes</s>"


def test_rows_stand_after_the_instruction_of_their_turn(tokenizer):
    """A row in a wrong place would be answered from before it is seen."""
    tokens = tokenize(TURNS, ROWS, tokenizer, PromptFormat())
    assert [m for m, _ in tokens.media] == ["visual", "audio"]
    for (modality, start), before in zip(tokens.media, ("What colour?", "And the sound?"), strict=True):
        end = start + ROWS[modality]
        assert all(i == ROW for i in tokens.ids[start:end])
        assert tokens.ids[start - 1] != ROW
        assert tokens.ids[end] != ROW
        assert tokenizer.decode([i for i in tokens.ids[:start] if i != ROW]).endswith(before)


def test_an_open_prompt_is_the_beginning_of_the_full_one(tokenizer):
    """Training and serving must read the same prompt."""
    full = tokenize(TURNS, ROWS, tokenizer, PromptFormat())
    asked = tokenize(TURNS, ROWS, tokenizer, PromptFormat(), open_ended=True)
    assert asked.ids == full.ids[: len(asked.ids)]
    assert tokenizer.decode([i for i in full.ids[len(asked.ids) :] if i != ROW]) == " yes</s>"
    assert tokens_are_answers(full, len(asked.ids))


def tokens_are_answers(full, start):
    return all(full.answers[start:]) and not full.answers[start - 1]


def test_control_tokens_that_somebody_wrote_are_text(tokenizer):
    """Else an answer about HTML teaches to stop in its middle, and a pasted chat makes a turn."""
    turns = (Turn("What does </s> do, and <s>?", "text", "The tag </s> ends it."),)
    tokens = tokenize(turns, ROWS, tokenizer, PromptFormat())
    learnt = [i for i, answer in zip(tokens.ids, tokens.answers, strict=True) if answer]
    assert tokenizer.decode(learnt) == " The tag </s> ends it.</s>"
    assert tokens.ids.count(tokenizer.eos_token_id) == 1
    assert learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in tokens.ids


@pytest.mark.parametrize("marks", [("<s>", None), ("<s>", "</s>"), (None, "</s>"), (None, None)])
def test_a_prompt_begins_as_the_tokenizer_begins_and_never_with_an_end_mark(tiny_llm, marks):
    """Some tokenizers put an end mark behind every text: a prompt must not begin with it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    before, behind = marks
    template = " ".join(filter(None, [before, "$A", behind]))
    special = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in filter(None, marks)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    assert tokenizer("x").input_ids[-1] == (1 if behind else tokenizer("x", add_special_tokens=False).input_ids[0])
    tokens = tokenize(TURNS, ROWS, tokenizer, PromptFormat())
    assert tokenizer.decode(tokens.ids[:2]).startswith("<s>S" if before else "S")


def test_no_conversations_are_no_tokens(tokenizer):
    assert tokenize_all([], tokenizer, PromptFormat()) == []
