"""Conversations, by the model's own chat template: the same tokens and the same mask as transformers'."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.data import load
from edgepeft.data.conversations.chat import Chat
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.folder import listed
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import ChatSpec
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.notices import EdgepeftWarning
from tests.data.chat_templates import PUBLISHED, Published
from tests.support.bundles import Trained

SINGLE = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4, of course."}]
SEVERAL = [
    *SINGLE,
    {"role": "user", "content": "  Really?\n"},
    {"role": "assistant", "content": " Yes: {{ 4 }} <b>\n\n"},
    {"role": "user", "content": "naïve 日本"},
    {"role": "assistant", "content": "Fin"},
]
SYSTEM = [{"role": "system", "content": "Be short."}, *SEVERAL]
OPEN = SEVERAL[:3]


def _tokenizer(published: Published) -> Any:
    """Byte-level BPE over a few merges, with the template's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(published.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps(SYSTEM)] * 3, trainer)
    return tokenizer


def _with_chat(bundle: Bundle, folder: Path, tokenizer: Any, chat: ChatSpec | None, end: tuple[str, ...]) -> Bundle:
    """The bundle of a causal language model with another tokenizer and a chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    manifest = bundle.manifest
    assert manifest.text is not None and manifest.generation is not None
    changed = replace(
        manifest,
        files={**manifest.files, "tokenizer.json": listed(folder / "tokenizer.json")},
        text=replace(manifest.text, chat=chat, max_length=400),
        dimensions={name: replace(dimension, max=None) for name, dimension in manifest.dimensions.items()},
        generation=replace(manifest.generation, end=tuple(tokenizer.token_to_id(token) for token in end)),
    )
    return replace(bundle, path=folder, manifest=changed)


@pytest.fixture
def smol(causal: Trained, tmp_path: Path) -> Bundle:
    """A bundle with SmolLM2's template."""
    own = PUBLISHED["SmolLM2 (ChatML)"]
    spec = ChatSpec(own.template, own.named)
    return _with_chat(Bundle.open(causal.bundle), tmp_path, _tokenizer(own), spec, own.end)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_and_mask_are_those_of_transformers(name: str, causal: Trained, tmp_path: Path) -> None:
    """Token by token, for one turn, several, and a conversation that ends with a question.

    Our mask comes from the plain template, that of transformers from the tags of generation.
    """
    from transformers import PreTrainedTokenizerFast

    own = PUBLISHED[name]
    tokenizer = _tokenizer(own)
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=own.with_tags, **own.named)
    spec = ChatSpec(own.template, own.named)
    chat = Chat(_with_chat(Bundle.open(causal.bundle), tmp_path, tokenizer, spec, own.end))
    for messages in (SINGLE, SEVERAL, OPEN, *((SYSTEM,) if own.system else ())):
        text = reference.apply_chat_template(messages, chat_template=own.template, tokenize=False)
        assert chat.text(messages) == text == reference.apply_chat_template(messages, tokenize=False)
        expected = reference.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        turns = chat.turns(messages)
        assert turns.ids.tolist() == expected["input_ids"]
        assert turns.learned.tolist() == [bool(token) for token in expected["assistant_masks"]]
        assert turns.learned.any()
        assert turns.unmarked == 0
    asked = reference.apply_chat_template(OPEN, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert chat.prompt(OPEN) == asked["input_ids"]


def test_columns_of_messages_are_recognized(smol: Bundle, tmp_path: Path) -> None:
    """``messages``, or ``prompt`` and ``completion``, of which only the completion is learned."""
    chat, (ask, answer) = Chat(smol), (SEVERAL[:3], SEVERAL[3:4])
    lines = [json.dumps({"messages": SEVERAL[:4]}), json.dumps({"messages": SINGLE})]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    batch = load(tmp_path / "d.jsonl", smol).batch(np.arange(2))
    turns = chat.turns(SEVERAL[:4])
    assert batch["input_ids"][0].tolist() == turns.ids.tolist()
    assert batch["labels"][0].tolist() == np.where(turns.learned, turns.ids, -100).tolist()
    assert (batch["labels"][1, len(chat.turns(SINGLE).ids) :] == -100).all()
    labels = load([{"prompt": ask, "completion": answer}], smol).batch(np.arange(1))["labels"][0]
    learned = labels[labels != -100].tolist()
    assert learned == turns.ids[turns.learned].tolist()[-len(learned) :]
    assert len(learned) < turns.learned.sum()
    assert "labels" not in load([{"messages": OPEN}], smol, labelled=False).batch(np.arange(1))
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in SYSTEM[:5]]
    rows = load([{"conversations": shared}], smol).batch(np.arange(1))
    for name, array in load([{"messages": SYSTEM[:5]}], smol).batch(np.arange(1)).items():
        assert np.array_equal(rows[name], array)
    with pytest.raises(EdgepeftError, match="conversation"):
        load([{"conversations": "hi"}], smol)


def test_instructions_and_completions_are_prompts_and_answers(causal: Trained) -> None:
    """Texts go through the template of prompts, as ``prompt`` and ``answer`` do."""
    bundle = Bundle.open(causal.bundle)
    expected = load([{"prompt": "good\n\nfilm", "answer": "bad"}, {"prompt": "a", "answer": "bad"}], bundle)
    rows = [
        {"instruction": "good", "input": "film", "output": "bad"},
        {"instruction": "a", "input": "", "output": "bad"},
    ]
    pairs = [{"prompt": "good\n\nfilm", "completion": "bad"}, {"prompt": "a", "completion": "bad"}]
    for data in (rows, pairs):
        for name, array in load(data, bundle).batch(np.arange(2)).items():
            assert np.array_equal(array, expected.batch(np.arange(2))[name])
    assert "labels" not in load([{"instruction": "good"}], bundle, labelled=False).batch(np.arange(1))


def test_long_conversations_are_cut_on_the_left(smol: Bundle) -> None:
    """The first token stays, and one line says how many were cut."""
    assert smol.manifest.text is not None
    short = replace(smol, manifest=replace(smol.manifest, text=replace(smol.manifest.text, max_length=20)))
    whole = Chat(smol).turns(SEVERAL).ids.tolist()
    with pytest.warns(EdgepeftWarning, match=f"1 of 1 conversations are cut on the left to 20 .* {len(whole)}"):
        ids = load([{"messages": SEVERAL}], short).batch(np.arange(1))["input_ids"][0].tolist()
    assert ids == [whole[0], *whole[-19:]]


def test_turns_that_a_template_rewrites_are_not_learned(smol: Bundle) -> None:
    """Some templates leave out earlier thoughts; one line says so."""
    assert smol.manifest.text is not None and smol.manifest.text.chat is not None
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}forgotten{% else %}{{ m.content }}"
        "{% endif %};{% endfor %}"
    )
    text = replace(smol.manifest.text, chat=ChatSpec(template, {}))
    forgetful = replace(smol, manifest=replace(smol.manifest, text=text))
    turns = Chat(forgetful).turns(SEVERAL[:4])
    assert turns.unmarked == 1
    learned = Chat(forgetful)._tokenizer.decode(turns.ids[turns.learned].tolist(), skip_special_tokens=False)
    assert learned == SEVERAL[3]["content"] + ";"
    with pytest.warns(EdgepeftWarning, match="1 of the assistant's turns are not learned"):
        load([{"messages": SEVERAL[:4]}], forgetful)


LONG = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c " * 500},
]
REFUSED: dict[str, tuple[Any, str, str]] = {
    "no assistant": ([{"messages": SINGLE[:1]}], "bad-line", "no message has the role 'assistant'"),
    "no list": ([{"messages": SINGLE}, {"messages": "hello"}], "bad-line", "example 2"),
    "no role": ([{"messages": [{"content": "a"}]}], "bad-line", "needs a role"),
    "no content": ([{"messages": [{"role": "assistant"}]}], "bad-line", "content"),
    "answer is cut off": ([{"messages": LONG}], "bad-line", "of the last"),
    "half a pair": ([{"messages": [{"role": "assistant", "content": "\ud800"}]}], "bad-line", "surrogate"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_conversation_is_refused(kind: str, smol: Bundle) -> None:
    """The row is named."""
    data, code, words = REFUSED[kind]
    with pytest.raises(EdgepeftError) as caught:
        load(data, smol)
    assert caught.value.code == code
    assert words in str(caught.value)


ESCAPES = [
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{% set n = namespace(a=1) %}{% set n.__class__ = 3 %}x",
    "{{ messages.append(3) }}",
    "{{ raise_exception('no') }}",
    "{% for i in range(10 ** 9) %}a{% endfor %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_does_not_leave_the_sandbox(template: str, smol: Bundle) -> None:
    """It comes from whoever published the model."""
    assert smol.manifest.text is not None
    text = replace(smol.manifest.text, chat=ChatSpec(template, {}))
    with pytest.raises(EdgepeftError) as caught:
        load([{"messages": SINGLE}], replace(smol, manifest=replace(smol.manifest, text=text)))
    assert "cannot be rendered" in str(caught.value) or "not valid" in str(caught.value)


def test_bundles_without_a_chat_template_are_refused(causal: Trained, smol: Bundle) -> None:
    """And a template that is not Jinja."""
    with pytest.raises(EdgepeftError, match="no chat template"):
        load([{"messages": SINGLE}], Bundle.open(causal.bundle))
    assert smol.manifest.text is not None
    broken = replace(smol.manifest.text, chat=ChatSpec("{% for %}", {}))
    with pytest.raises(EdgepeftError, match="not valid"):
        load([{"messages": SINGLE}], replace(smol, manifest=replace(smol.manifest, text=broken)))


def test_the_manifest_keeps_the_chat_template(smol: Bundle) -> None:
    """It is read as it was written, and a manifest without one has no field."""
    assert Manifest.from_json(smol.manifest.to_json()) == smol.manifest
    assert smol.manifest.text is not None
    without = replace(smol.manifest, text=replace(smol.manifest.text, chat=None))
    assert '"chat"' not in without.to_json()


@pytest.mark.slow
def test_a_directory_with_a_chat_template_learns_like_torch(tmp_path: Path) -> None:
    """From ``save_pretrained`` to the loss of the assistant's turns, compared with torch on transformers' mask."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import edgepeft

    own = PUBLISHED["Gemma"]
    tokenizer = _tokenizer(own)
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=own.template, **own.named)
    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    end = [tokenizer.token_to_id(token) for token in own.end]
    config = LlamaConfig(**sizes, bos_token_id=0, eos_token_id=end, pad_token_id=1)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    reference.save_pretrained(tmp_path / "model")
    source = edgepeft.load_source(tmp_path / "model", max_length=256)
    bundle = Bundle.open(edgepeft.prepare(source, method=edgepeft.Lora(rank=2), out=tmp_path / "bundle").bundle)
    assert bundle.manifest.text is not None
    assert bundle.manifest.text.chat == ChatSpec(own.template, own.named)
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": SEVERAL}))
    with Trainer.open(bundle) as trainer:
        loss = trainer.evaluate(load(tmp_path / "d.jsonl", bundle)).loss
    expected = reference.apply_chat_template(
        SEVERAL, chat_template=own.with_tags, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = torch.tensor([expected["input_ids"]]), torch.tensor([expected["assistant_masks"]]).bool()
    with torch.no_grad():
        torchs = model(input_ids=ids, labels=torch.where(mask, ids, -100)).loss
    assert loss == pytest.approx(float(torchs), abs=1e-5)
