"""Post-instruction tokens of the public chat formats, against lists counted by hand (tests/chat_templates.py)."""

import pytest
from chat_templates import FAMILIES
from holdfast.errors import HoldfastError
from holdfast.prompts.templates import (
    PROBES,
    Thought,
    answer_opening,
    encode,
    post_instruction_tokens,
    render,
    thought_delimiters,
)
from holdfast.refusal.scores import RefusalScore
from transformers import PreTrainedTokenizerFast

SYSTEM_PROMPT = "Answer in one short line."
TEXTS = [*PROBES, "Tell me, in a sentence or two, where the river ends.", "?", "two\nlines"]
TAKING_SYSTEM = [name for name, family in FAMILIES.items() if not family.refuses_system]
REFUSING_SYSTEM = [name for name in FAMILIES if name not in TAKING_SYSTEM]
WRITING_BOS = [
    (name, system)
    for name, family in FAMILIES.items()
    if family.bos
    for system in ((None,) if family.refuses_system else (None, SYSTEM_PROMPT))
]

# What follows "{instruction}" in pipeline/model_utils of the code of arXiv 2406.11717. Its Llama 2 prompt ends in
# one more space, which Meta's format and the published chat template do not have.
REFERENCE = {
    "llama-2-chat": " [/INST]",
    "llama-3-instruct": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen-1-chat": "<|im_end|>\n<|im_start|>assistant\n",
    "gemma-2-it": "<end_of_turn>\n<start_of_turn>model\n",
    "yi-chat": "<|im_end|>\n<|im_start|>assistant\n",
}


def strings(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> tuple[str, ...]:
    return tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_post_instruction_tokens_are_those_counted_by_hand(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    assert strings(tokenizer, post_instruction_tokens(tokenizer, family.settings())) == family.ending


@pytest.mark.parametrize("name", REFERENCE)
def test_the_directions_authors_have_the_same_positions(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    assert tokenizer.decode(post_instruction_tokens(tokenizer, family.settings())) == REFERENCE[name]


@pytest.mark.parametrize("name", TAKING_SYSTEM)
def test_a_system_prompt_changes_nothing_after_the_instruction(name: str) -> None:
    family = FAMILIES[name]
    tokenizer, settings = family.tokenizer(), family.settings(SYSTEM_PROMPT)
    assert render(tokenizer, ["hello"], settings)[0].count(SYSTEM_PROMPT) == 1
    assert strings(tokenizer, post_instruction_tokens(tokenizer, settings)) == family.ending


@pytest.mark.parametrize("name", REFUSING_SYSTEM)
def test_a_template_without_a_system_role_is_one_line(name: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(HoldfastError, match="check system_prompt") as error:
        post_instruction_tokens(family.tokenizer(), family.settings(SYSTEM_PROMPT))
    assert f"({family.refuses_system})" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_template_that_fails_without_a_word_is_one_line_too() -> None:
    tokenizer = FAMILIES["llama-2-chat"].tokenizer()
    tokenizer.chat_template = "{{ raise_exception('') }}"
    with pytest.raises(HoldfastError, match=r"its chat template fails \(TemplateError\)"):
        render(tokenizer, ["hello"], {})


@pytest.mark.parametrize(("name", "system"), WRITING_BOS)
def test_the_beginning_token_is_there_once(name: str, system: str | None) -> None:
    family = FAMILIES[name]
    tokenizer, settings = family.tokenizer(), family.settings(system)
    for text in TEXTS:
        ids = encode(tokenizer, [text], settings)["input_ids"][0].tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    # Left to itself the tokenizer would add a second one.
    (rendered,) = render(tokenizer, ["hello"], settings)
    assert tokenizer(rendered)["input_ids"].count(tokenizer.bos_token_id) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_a_batch_end_alike_whatever_their_lengths(name: str) -> None:
    family = FAMILIES[name]
    tokenizer, settings = family.tokenizer(), family.settings()
    batch = encode(tokenizer, TEXTS, settings)
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2
    for row, (text, length) in enumerate(zip(TEXTS, lengths.tolist(), strict=True)):
        ids, mask = (batch[key][row].tolist() for key in ("input_ids", "attention_mask"))
        assert mask == [0] * (len(mask) - length) + [1] * length
        assert strings(tokenizer, ids)[-len(family.ending) :] == family.ending
        assert ids[-length:] == encode(tokenizer, [text], settings)["input_ids"][0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_opening_follows_the_ending(name: str) -> None:
    family = FAMILIES[name]
    tokenizer, settings = family.tokenizer(), family.settings()
    plain, opened = (encode(tokenizer, ["hello"], settings, s)["input_ids"][0].tolist() for s in ("", "I"))
    assert opened == [*plain, tokenizer.convert_tokens_to_ids("I")]


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_read_where_the_answer_begins(name: str) -> None:
    family = FAMILIES[name]
    tokenizer, settings = family.tokenizer(), family.settings()
    texts = ["hello", *TEXTS]
    asked = RefusalScore(tokenizer, settings, [[5, 6], [7]], "phrases").prompts(texts)
    expected = family.to_answer or family.ending
    for ids, prompt in zip(asked.ids, encode(tokenizer, texts, settings)["input_ids"].tolist(), strict=True):
        assert strings(tokenizer, ids)[-len(expected) :] == expected
        shared = len(ids) - len(expected)  # up to the end of the instruction nothing is added
        assert ids[:shared] == [i for i in prompt if i != tokenizer.pad_token_id][:shared]


ON = Thought("<think>", "</think>", begun=False, left_out="<think>\n\n</think>\n\n")
THOUGHTS = {
    "qwen3": ON,
    "qwen3-thinking": ON,
    "qwen3-not-thinking": Thought("<think>", "</think>", begun=False, left_out=""),
    "qwen3-thinking-2507": Thought("<think>", "</think>", begun=True, left_out="\n</think>\n\n"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_thoughts_are_told_from_the_template(name: str) -> None:
    family = FAMILIES[name]
    assert thought_delimiters(family.tokenizer(), family.settings()) == THOUGHTS.get(name)


# What others write with thinking on and off, each after "<a>"; the answer begins where `off` ends.
SWITCHES = {
    "GLM-4.5": ("", "<think></think>", "<think></think>"),
    "EXAONE-4": ("<think>\n", "<think>\n\n</think>\n\n", "\n</think>\n\n"),
    "SmolLM3": ("", "<think>\n\n</think>\n", "<think>\n\n</think>\n"),
    "Seed-OSS": ("", "<seed:think>\n</seed:think>", "<seed:think>\n</seed:think>"),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_thought_is_left_out_as_the_template_leaves_it_out(name: str) -> None:
    on, off, left_out = SWITCHES[name]
    tokenizer = FAMILIES["qwen3"].tokenizer()
    tokenizer.chat_template = (
        f"{{{{ '/no' if enable_thinking is false else '' }}}}{{{{ messages[-1].content + '<a>' }}}}"
        f"{{{{ '{off}' if enable_thinking is false else '{on}' }}}}"
    )
    asked, opening = {}, {}
    for thinking in (None, True, False):
        settings = {"thinking": thinking, "system_prompt": None}
        opening[thinking] = answer_opening(tokenizer, settings)
        asked[thinking] = render(tokenizer, ["hello"], settings)[0] + opening[thinking]
    assert opening == {None: left_out, True: left_out, False: ""}
    assert "/no" + asked[True] == "/no" + asked[None] == asked[False]


@pytest.mark.parametrize(("name", "thinking"), [("llama-3-instruct", True), ("qwen3-thinking-2507", False)])
def test_a_switch_that_does_nothing_is_one_line(name: str, thinking: bool) -> None:
    tokenizer, settings = FAMILIES[name].tokenizer(), {"thinking": thinking, "system_prompt": None}
    with pytest.raises(HoldfastError, match=r"no thinking switch: thinking: (true|false) changes nothing"):
        post_instruction_tokens(tokenizer, settings)


def test_not_to_think_is_no_mistake_where_no_thought_is_known() -> None:
    tokenizer = FAMILIES["llama-3-instruct"].tokenizer()
    plain, told = (render(tokenizer, ["hi"], {"thinking": t, "system_prompt": None}) for t in (None, False))
    assert plain == told
