"""On the workstation: compile a model of texts into ``bundle``, which a device trains."""

import csv
import shutil
from pathlib import Path

import torch

import edgepeft

MODEL = Path("model")
"""A model directory. Replace it by a real one: hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir model"""


def write_small_model(folder: Path) -> None:
    """Write a new BERT of two layers, whose words are those of data.csv."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    with open("data.csv", encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)


if not MODEL.exists():
    write_small_model(MODEL)
with open("data.csv", encoding="utf-8", newline="") as file:
    classes = sorted({row["label"] for row in csv.DictReader(file)})
source = edgepeft.load_source(MODEL, task="text-classification", classes=classes)
# A new model trains whole. For a real one: method=edgepeft.Lora(rank=8), compute="int8"
prepared = edgepeft.prepare(source, method="full", out="bundle", overwrite=True)
shutil.rmtree("run", ignore_errors=True)  # the run of an older bundle
print(f"{prepared.bundle}: {prepared.trainable:,} trainable elements, classes {', '.join(classes)}")
