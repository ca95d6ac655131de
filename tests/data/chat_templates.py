"""Chat templates as they are published with their models, and the same ones with the tags that mark what is learned.

``{% generation %}`` is the tag by which ``transformers`` finds the assistant's tokens. The tagged template is the plain
one with one piece replaced; a test compares their texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must "
    "alternate user/assistant/user/assistant/...') }}{% endif %}"
)


@dataclass(frozen=True)
class Published:
    """A template: ``piece`` of it is ``tagged`` for transformers.

    Attributes:
        special: Tokens of its own, which the tokenizer must not split.
        end: Those that end a text.
        named: Special tokens by the name that the template uses.
        system: Whether a system message is allowed.
    """

    template: str
    piece: str
    tagged: str
    special: tuple[str, ...]
    end: tuple[str, ...]
    named: dict[str, str] = field(default_factory=dict)
    system: bool = True

    @property
    def with_tags(self) -> str:
        """The template for transformers."""
        assert self.template.count(self.piece) == 1
        return self.template.replace(self.piece, self.tagged)


def _either(generated: str, other: str) -> str:
    return (
        "{% if message['role'] == 'assistant' %}{% generation %}{{ " + generated + " }}{% endgeneration %}"
        "{% else %}{{ " + other + " }}{% endif %}"
    )


PUBLISHED = {
    "SmolLM2 (ChatML)": Published(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
        "{{'<|im_start|>' + message['role'] + '\n'}}"
        + _either("message['content'] + '<|im_end|>'", "message['content'] + '<|im_end|>'")
        + "{{'\n'}}",
        ("<|im_start|>", "<|im_end|>"),
        ("<|im_end|>",),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    ),
    "Llama 3": Published(
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "{{ content }}",
        "{% set head = (bos_token if loop.index0 == 0 else '') + '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\n\n' %}{{ head }}" + _either("content[head | length:]", "content[head | length:]"),
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        ("<|end_of_text|>", "<|eot_id|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "Mistral": Published(
        "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are "
        "supported!') }}{% endif %}{% endfor %}",
        "{{ message['content'] + eos_token}}",
        "{% generation %}{{ message['content'] + eos_token}}{% endgeneration %}",
        ("<s>", "</s>"),
        ("</s>",),
        {"bos_token": "<s>", "eos_token": "</s>"},
        system=False,
    ),
    "Gemma": Published(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
        "{{ '<start_of_turn>' + role + '\n' }}"
        + _either("message['content'] | trim + '<end_of_turn>'", "message['content'] | trim + '<end_of_turn>'")
        + "{{ '\n' }}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        system=False,
    ),
    "Phi-3": Published(
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
        "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}",
        "{{'<|assistant|>\n'}}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{'\n'}}",
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|endoftext|>", "<|assistant|>", "<|end|>"),
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    ),
}
