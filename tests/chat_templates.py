"""Public chat formats in short, and the tokens each writes after the instruction, counted by hand.

The templates are written for the tests: one turn and a system prompt, no tools. Special tokens are those of the
real tokenizers. The rest is split alike for all of them, with words, runs of line ends and single signs as tokens;
the real tokenizers cut long words into more.
"""

from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD = "<pad>"
PIECES = r" ?[A-Za-z]+|\n+| ?."
# Single tokens; anything else falls apart into bytes, so no two probes end alike by chance.
WORDS = ("assistant", "model", "INST", " ASSISTANT", " [", "\n\n")


@dataclass(frozen=True)
class Family:
    """``ending``: what follows the instruction. ``bos``: written by the template, and added by the tokenizer.

    ``to_answer``: what follows it up to the answer's first token, where that is more than the ending.
    """

    template: str
    special: tuple[str, ...]
    ending: tuple[str, ...]
    bos: str | None = None
    refuses_system: str | None = None  # what the template raises then
    takes_line_ends: bool = False  # special tokens swallow the white space after them
    thinking: bool | None = None
    to_answer: tuple[str, ...] = ()

    def settings(self, system_prompt: str | None = None) -> dict[str, Any]:
        return {"thinking": self.thinking, "system_prompt": system_prompt}

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level BPE that knows WORDS and, as one token each, the family's special ones."""
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        special = [PAD, *([self.bos] if self.bos else []), *self.special]
        trainer = trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=[AddedToken(t, rstrip=self.takes_line_ends, special=True) for t in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(WORDS * 2, trainer)
        if self.bos:
            inner.post_processor = processors.TemplateProcessing(
                single=[self.bos, "$A"], special_tokens=[(self.bos, inner.token_to_id(self.bos))]
            )
        found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=self.bos, pad_token=PAD)
        found.chat_template = self.template
        return found


def _turns(opening: str, closing: str, before: str = "") -> str:
    return (
        f"{{% for m in messages %}}{{{{ {before}{opening} + m.content | trim + {closing} }}}}{{% endfor %}}"
    )


def _answer(header: str, more: str = "") -> str:
    return f"{{% if add_generation_prompt %}}{{{{ '{header}' }}}}{more}{{% endif %}}"


def _system_apart(of: str, without: str = "''") -> str:
    """Takes a system message out of the messages; ``system`` is then ``of`` it, or ``without``."""
    return (
        f"{{% if messages[0].role == 'system' %}}{{% set system = {of} %}}{{% set messages = messages[1:] %}}"
        f"{{% else %}}{{% set system = {without} %}}{{% endif %}}"
    )


def _default_system(text: str) -> str:
    return (
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + text + "<|im_end|>\n' }}{% endif %}"
    )


CHATML_TURNS = _turns("'<|im_start|>' + m.role + '\n'", "'<|im_end|>\n'")
CHATML = Family(
    CHATML_TURNS + _answer("<|im_start|>assistant\n"),
    ("<|im_start|>", "<|im_end|>"),
    ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),
)
QWEN3 = replace(
    CHATML,
    template=CHATML_TURNS
    + _answer(
        "<|im_start|>assistant\n",
        "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    ),
    special=(*CHATML.special, "<think>", "</think>"),
)
EMPTY_THOUGHT = ("<think>", "\n\n", "</think>", "\n\n")
QWEN3_THINKING = replace(QWEN3, to_answer=(*CHATML.ending, *EMPTY_THOUGHT))
LLAMA_3_TURN = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
LLAMA_3_ANSWER = _answer("<|start_header_id|>assistant<|end_header_id|>\n\n")
LLAMA_3 = Family(
    _turns(LLAMA_3_TURN, "'<|eot_id|>'", "(bos_token if loop.first else '') + ") + LLAMA_3_ANSWER,
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
    bos="<|begin_of_text|>",
)
GEMMA_TURNS = _turns(
    "'<start_of_turn>user\n' + (system if loop.first else '')", "'<end_of_turn>\n'"
) + _answer("<start_of_turn>model\n")
GEMMA_3 = Family(
    "{{ bos_token }}" + _system_apart("messages[0].content + '\n\n'") + GEMMA_TURNS,
    ("<start_of_turn>", "<end_of_turn>"),
    ("<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"),
    bos="<bos>",
)
# Before Mistral's third tokenizer [INST] was ordinary text, as it is in Llama 2.
INST_AS_TEXT = (" [", "/", "INST", "]")
ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."

FAMILIES = {
    "llama-2-chat": Family(
        _system_apart("'<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n'")
        + "{{ bos_token + '[INST] ' + (system + messages[0].content).strip() + ' [/INST]' }}",
        (),
        INST_AS_TEXT,
        bos="<s>",
    ),
    "llama-3-instruct": LLAMA_3,
    # A system block with the date stands there with and without a system prompt.
    "llama-3.1-instruct": replace(
        LLAMA_3,
        template="{{ bos_token }}"
        + _system_apart("messages[0].content")
        + "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + system"
        " + '<|eot_id|>' }}" + _turns(LLAMA_3_TURN, "'<|eot_id|>'") + LLAMA_3_ANSWER,
    ),
    "qwen-1-chat": CHATML,
    "qwen2.5-instruct": replace(CHATML, template=_default_system("You are Qwen.") + CHATML.template),
    "qwen3": QWEN3_THINKING,  # left to itself it thinks
    "qwen3-thinking": replace(QWEN3_THINKING, thinking=True),
    "qwen3-not-thinking": replace(QWEN3, thinking=False, ending=(*CHATML.ending, *EMPTY_THOUGHT)),
    # No switch: every prompt ends in an open thought.
    "qwen3-thinking-2507": replace(
        QWEN3_THINKING,
        template=CHATML_TURNS
        + "{% set stripped = messages[-1].content.split('</think>') %}"
        + _answer("<|im_start|>assistant\n<think>\n"),
        ending=(*CHATML.ending, "<think>", "\n"),
    ),
    "gemma-2-it": replace(
        GEMMA_3,
        template="{{ bos_token }}{% set system = '' %}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + GEMMA_TURNS,
        refuses_system="System role not supported",
    ),
    "gemma-3-it": GEMMA_3,
    "yi-chat": CHATML,
    "mistral-instruct-v0.2": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role != 'user' %}"
        "{{ raise_exception('" + ALTERNATE + "') }}{% endif %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% endfor %}",
        (),
        INST_AS_TEXT,
        bos="<s>",
        refuses_system=ALTERNATE,
    ),
    "mistral-instruct-v0.3": Family(
        _system_apart("messages[0].content + '\n\n'")
        + "{{ bos_token + '[INST] ' + system + messages[0].content + '[/INST]' }}",
        ("[INST]", "[/INST]"),
        ("[/INST]",),
        bos="<s>",
    ),
    # The line ends of the template belong to the special tokens before them.
    "phi-3-instruct": Family(
        _turns("'<|' + m.role + '|>\n'", "'<|end|>\n'") + _answer("<|assistant|>\n"),
        ("<|system|>", "<|user|>", "<|end|>", "<|assistant|>"),
        ("<|end|>", "<|assistant|>"),
        takes_line_ends=True,
    ),
    "smollm2-instruct": replace(CHATML, template=_default_system("You are SmolLM.") + CHATML.template),
    "user-assistant": Family(
        _system_apart("messages[0].content + ' '")
        + "{{ system + 'USER: ' + messages[0].content + ' ASSISTANT:' }}",
        (),
        (" ASSISTANT", ":"),
    ),
}
