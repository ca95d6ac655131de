"""A small Llama that is made on the spot: it knows where things are, and answers in plain sentences."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = "### Question:\n{prompt}\n### Answer:\n"
PAD, END = "<pad>", "<end>"
STEPS, BATCH = 500, 32

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
