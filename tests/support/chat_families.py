"""Chat templates of model families, written from their published behaviour, on tiny tokenizers.

Only what decides the markup is kept: turns, BOS and EOS, system messages, thinking blocks, dates,
trimming. Tools and images are left out.
"""

from __future__ import annotations

from functools import cache

from attrs import field, frozen
from tokenizers import processors

from mgk_hf.tiny import tiny_tokenizer

TEXTS = (
    "당뇨병은 혈당이 높은 병이다.",
    "영어: Asthma\n한국어: 천식",
    "What is a headache? 두통이다.",
    "system user assistant model think final analysis Today Date Instruction Answer",
)


@frozen
class Family:
    """A template with the tokens it needs.

    turn_end: what ends an assistant's turn. ends: further stop tokens of generation_config.json.
    bos: whether the tokenizer puts BOS before a text. system: whether it has a system role.
    """

    name: str
    template: str = field(repr=False)
    specials: tuple[str, ...]
    turn_end: str
    eos: str
    ends: tuple[str, ...] = ()
    bos: str = ""
    adds_bos: bool = False
    system: bool = True
    words: tuple[str, ...] = ()
    """Added tokens that are not special, as <think> is in Qwen's tokenizer."""


_CHATML_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA_TURNS = (
    "{{ '<start_of_turn>' + role + '\n' + prefix + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_GEMMA_ROLE = "{% if m.role == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m.role %}{% endif %}"
_LLAMA3_TURN = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
# Earlier answers lose their thinking; the last one keeps a block, if only an empty one.
_QWEN3_TURNS = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set thought = '' %}
{%- set said = m.content %}
{%- if '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- said + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
"""
_QWEN3_ASK = """\
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
_QWEN35_ASK = """\
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- else %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}
"""

FAMILIES = (
    Family(
        "gemma-2",
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "{% set prefix = '' %}" + _GEMMA_ROLE + _GEMMA_TURNS,
        ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<eos>",
        bos="<bos>", adds_bos=True, system=False,
    ),
    Family(
        "gemma-3",
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% set prefix = first if loop.first else '' %}"
        + _GEMMA_ROLE + _GEMMA_TURNS,
        ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<eos>", ("<eos>", "<end_of_turn>"),
        bos="<bos>", adds_bos=True,
    ),
    Family(
        "llama-2",
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0].content %}{% else %}{% set rest = messages %}"
        "{% set system = false %}{% endif %}"
        "{% for m in rest %}{% if loop.index0 == 0 and system != false %}"
        "{% set said = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
        "{% else %}{% set said = m.content %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + said.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "</s>", "</s>", bos="<s>", adds_bos=True,
    ),
    Family(
        "llama-3.2",
        "{{- bos_token }}"
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
        "{{- 'Cutting Knowledge Date: December 2023\n' }}"
        "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system }}{{- '<|eot_id|>' }}"
        "{%- for m in messages %}" + _LLAMA3_TURN + "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
         "<|end_of_text|>"),
        "<|eot_id|>", "<|eot_id|>", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", adds_bos=True,
    ),
    Family(
        "mistral",
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
        "{%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}"
        "{{- bos_token }}{%- for m in turns %}{%- if m.role == 'user' %}"
        "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}"
        "{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}"
        "{%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", bos="<s>", adds_bos=True,
    ),
    Family(
        "qwen-2.5",
        "{%- if messages[0].role == 'system' %}"
        "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
        "{%- set messages = messages[1:] %}{%- else %}"
        "{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\n' }}{%- endif %}"
        + _CHATML_TURNS,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    Family(
        "qwen-3", _QWEN3_TURNS + _QWEN3_ASK,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"), words=("<think>", "</think>"),
    ),
    Family(
        "qwen-3.5", _QWEN3_TURNS + _QWEN35_ASK,
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
        ("<|im_end|>", "<|endoftext|>"), words=("<think>", "</think>"),
    ),
    Family(
        "phi-3",
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"), "<|end|>",
        "<|endoftext|>", ("<|endoftext|>", "<|assistant|>", "<|end|>"),
    ),
    Family(
        "phi-4",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
    ),
    Family(
        "exaone-3.5",
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
        "{{ '[|system|][|endofturn|]\n' }}{% endif %}{{ '[|' + m.role + '|]' + m.content }}"
        "{% if m.role == 'user' %}{{ '\n' }}{% else %}{{ '[|endofturn|]\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
        ("[BOS]", "[|endofturn|]", "[|system|]", "[|user|]", "[|assistant|]"), "[|endofturn|]",
        "[|endofturn|]", bos="[BOS]",
    ),
    Family(
        "deepseek-r1",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
        "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% else %}{% set said = m.content %}{% if '</think>' in said %}"
        "{% set said = said.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + said + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>", adds_bos=True,
        words=("<think>", "</think>"),
    ),
    Family(
        "gpt-oss",
        "{{ '<|start|>system<|message|>You are ChatGPT.\nKnowledge cutoff: 2024-06\nCurrent date: '"
        " + strftime_now('%Y-%m-%d') + '\n\nReasoning: medium<|end|>' }}"
        "{% if messages[0].role == 'system' %}"
        "{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '<|end|>' }}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
        "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{% if loop.last and not add_generation_prompt %}{{ '<|return|>' }}"
        "{% else %}{{ '<|end|>' }}{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"),
        "<|return|>", "<|return|>", ("<|return|>", "<|endoftext|>", "<|call|>"),
    ),
    Family(
        "granite-3",
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
        "{%- set turns = messages[1:] %}{%- else %}{%- set system = 'Knowledge Cutoff Date: April 2024.\n"
        "Today\\'s Date: ' + strftime_now('%B %d, %Y') + '.\nYou are Granite.' %}"
        "{%- set turns = messages %}{%- endif %}"
        "{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}"
        "{%- for m in turns %}"
        "{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}"
        "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "<|end_of_text|>",
        "<|end_of_text|>",
    ),
    Family(
        "smollm-2",
        "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
    ),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


@cache
def _bare():
    return tiny_tokenizer(TEXTS, 400).backend_tokenizer.to_str()


def tokenizer_of(family, template=None):
    """Return a new tokenizer of a family; template: another one than its own, None for its own."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_bare())
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.specials)})
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in family.words])
    tokenizer.add_special_tokens({"eos_token": family.eos})
    if family.bos:
        tokenizer.add_special_tokens({"bos_token": family.bos})
    if family.adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            special_tokens=[(family.bos, tokenizer.convert_tokens_to_ids(family.bos))],
        )
    tokenizer.chat_template = family.template if template is None else template
    return tokenizer
