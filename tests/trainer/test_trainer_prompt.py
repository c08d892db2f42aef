import pytest
from transformers import AutoTokenizer

from store import Turn
from trainer.prompt import ROW, PromptFormat, tokenize

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
