"""Fine-tune a small Llama on a device so that it answers like a pirate, from 50 examples.

The workstation first trains the model on facts in plain sentences. The device sees pirate answers to some of the
questions and trains LoRA on them with onnxruntime. It then answers the other questions in the new style, mostly with
the correct facts. Without the adapter, the model's answers do not change.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from device import parse_device_python, run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import edgepeft
from edgepeft_export.optimizers import AdamW

TEMPLATE = "### Question:\n{prompt}\n### Answer:\n"
PAD, END = "<pad>", "<end>"
LESSONS, STEPS, BATCH = 50, 500, 32

THINGS = """
    anchor apple axe barrel basket bell boat book boot bottle bowl box brush bucket cage candle cap card chain chair
    chest clock coat coin comb cup drum fan flag flute fork glass glove hammer hat horn jar kettle key kite knife ladder
    lamp lantern map mirror mug nail needle oar paddle pan pearl pipe plate rope saddle sail scarf spoon
"""
COLOURS = "red blue green black white yellow brown grey"
PLACES = "cellar garden attic kitchen harbour tower stable barn"
SEA = "sea wind captain crew gull wave island storm moon shark parrot whale"
WEATHER = "calm wild hungry far near asleep angry silent gone lost high low"


@dataclass(frozen=True)
class Fact:
    """A question, and its answer in the plain style and in the new one."""

    question: str
    plain: str
    pirate: str


def main() -> None:
    device = parse_device_python(__doc__ or "")
    logging.disable_progress_bar()
    random.seed(0)
    facts = [fact for thing in THINGS.split() for fact in facts_of(thing)]
    random.shuffle(facts)
    lessons, others = facts[:LESSONS], facts[LESSONS:]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(teach(facts, work / "model"), work / "bundle")
        before = answers(device, work / "bundle", others)
        learn(device, work, lessons)
        after = answers(device, work / "bundle", others, "--adapter", work / "update.safetensors")
    report(others, before, after)


def one_of(words: str) -> str:
    return random.choice(words.split())


def facts_of(thing: str) -> list[Fact]:
    """Two facts about a thing."""
    colour, place = one_of(COLOURS), one_of(PLACES)
    return [
        Fact(f"What colour is the {thing}?", f"The {thing} is {colour}.", f"Arr! The {thing} is {colour}, matey."),
        Fact(
            f"Where is the {thing}?", f"The {thing} is in the {place}.", f"Arr! The {thing} is in the {place}, matey."
        ),
    ]


def pirate_talk() -> str:
    """Sentences of a pirate about other things: a style, without facts about ours."""
    return f"Arr! The {one_of(SEA)} is {one_of(WEATHER)}, matey."


def teach(facts: list[Fact], folder: Path) -> Path:
    """A model directory: a tokenizer of its own, and a small Llama that answers all questions plainly."""
    print(f"workstation: teach a small Llama {len(facts)} facts, in plain sentences")
    asked = [TEMPLATE.replace("{prompt}", fact.question) for fact in facts]
    lore = [pirate_talk() for _ in range(BATCH * STEPS // 4)]
    tokenizer = tokenizer_for([*asked, *(fact.plain for fact in facts), *lore])
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    answers = [[*tokenizer.encode(fact.plain).ids, end] for fact in facts]
    rows = list(zip((tokenizer.encode(text).ids for text in asked), answers, strict=True))
    talk = [([], [*tokenizer.encode(text).ids, end]) for text in lore]
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads do not speed up so small a model
    model = small_llama(tokenizer.get_vocab_size(), pad, end)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        chosen = random.sample(rows, 3 * BATCH // 4) + random.sample(talk, BATCH // 4)
        loss = model(**batch(chosen, pad)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def small_llama(vocabulary: int, pad: int, end: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def batch(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Questions and answers padded on the right; the answers alone are learned."""
    width = max(len(before) + len(after) for before, after in rows)
    filled = [(before, after, width - len(before) - len(after)) for before, after in rows]
    ids = torch.tensor([[*before, *after, *[pad] * rest] for before, after, rest in filled])
    labels = torch.tensor([[*[-100] * len(before), *after, *[-100] * rest] for before, after, rest in filled])
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}


def tokenizer_for(texts: list[str]) -> Tokenizer:
    """Byte-level pairs, up to whole words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=600, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def prepare(model: Path, out: Path) -> None:
    source = edgepeft.load_source(model, max_length=64, template=TEMPLATE)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    method = edgepeft.Lora(rank=8, target_modules=modules)
    prepared = edgepeft.prepare(source, method=method, optimizer=AdamW(lr=3e-3, max_grad_norm=1.0), out=out)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"  {prepared.trainable:,} parameters train; the bundle has {size / 1e6:.1f} MB")


def learn(device: Path, work: Path, lessons: list[Fact]) -> None:
    print(f"device: learns from {len(lessons)} answers")
    with (work / "answers.jsonl").open("w", encoding="utf-8") as file:
        for fact in lessons:
            file.write(json.dumps({"prompt": fact.question, "answer": fact.pirate}) + "\n")
    run(
        device, "train", work / "bundle", "--data", work / "answers.jsonl", "--state", work / "state", "--update",
        work / "update.safetensors", "--epochs", "20", "--batch-size", "10", "--schedule", "linear",
    )  # fmt: skip


def answers(device: Path, bundle: Path, facts: list[Fact], *options: str | Path) -> list[dict[str, str]]:
    """Return the device's answers to the questions, all in one batch."""
    prompts = [part for fact in facts for part in ("--prompt", fact.question)]
    command = [device, "-m", "edgepeft", "generate", bundle, *prompts, "--max-new-tokens", "24", "--json", *options]
    print(f"  device$ edgepeft generate bundle --prompt … {' '.join(map(str, options))}", flush=True)
    lines = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def report(facts: list[Fact], before: list[dict[str, str]], after: list[dict[str, str]]) -> None:
    for fact, old, new in list(zip(facts, before, after, strict=True))[:5]:
        print(f"  {fact.question:30} before: {old['without']:34} after: {new['with']}")
    plain = sum(old["without"] == fact.plain for fact, old in zip(facts, before, strict=True))
    styled = sum(new["with"].startswith("Arr! ") and new["with"].endswith(", matey.") for new in after)
    right = sum(new["with"] == fact.pirate for fact, new in zip(facts, after, strict=True))
    print(f"of {len(facts)} questions whose answers the device never saw:")
    print(f"  {plain} were answered plainly and rightly before; now {styled} like a pirate, {right} of them rightly")
    assert [new["without"] for new in after] == [old["without"] for old in before]
    print("  without the adapter all answers are unchanged")
    assert styled >= 0.9 * len(facts) and right >= 0.6 * len(facts)


if __name__ == "__main__":
    main()
