"""Fine-tune a real language model on a device so that it answers like a pirate, from 36 examples.

The workstation prepares SmolLM2-135M-Instruct, a ``.gguf`` file with its tokenizer and chat template, in int8. The
device trains LoRA on the examples with onnxruntime, and answers other questions in the new style. The adapter returns
to the workstation and answers them in PyTorch with peft.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from device import parse_device_python, run
from smollm2 import smollm2

import edgepeft
from edgepeft.cli.screen.notices import notices_as_lines
from edgepeft_export.optimizers import AdamW

LESSONS = Path(__file__).with_name("pirate.jsonl")
SEEN = ("What is the capital of Italy?", "How many legs does a spider have?")
UNSEEN = {
    "What is the capital of France?": ("Paris",),
    "What is the capital of Spain?": ("Madrid",),
    "What is the capital of England?": ("London",),
    "What colour is the sky?": ("blue",),
    "How many legs does a dog have?": ("four", "4"),
    "How many hours are in a day?": ("24", "twenty-four"),
    "Which planet is known as the red planet?": ("Mars",),
    "Who wrote Hamlet?": ("Shakespeare",),
    "What is the opposite of big?": ("small", "little"),
    "What is the largest animal in the sea?": ("whale",),
    "Which language do people speak in France?": ("French",),
    "What is the chemical symbol of water?": ("H2O",),
}
"""Questions that no example asks, and words of which the right answer has one."""
TOKENS = 32


def main() -> None:
    device = parse_device_python(__doc__ or "")
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, to its own developers
    with notices_as_lines(), tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work / "bundle")
        run(
            device, "train", work / "bundle", "--data", LESSONS, "--state", work / "state", "--update",
            work / "update.safetensors", "--epochs", "4", "--batch-size", "4", "--schedule", "linear",
        )  # fmt: skip
        answers = ask(device, work / "bundle", work / "update.safetensors")
        report(answers)
        edgepeft.merge(work / "bundle", work / "update.safetensors", to="peft", out=work / "adapter")
        check_in_peft(work, answers)


def prepare(out: Path) -> None:
    print("workstation: prepare SmolLM2-135M-Instruct in int8, with LoRA on all layers")
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    prepared = edgepeft.prepare(
        edgepeft.load_source(smollm2(), max_length=128),
        method=edgepeft.Lora(rank=8, target_modules=modules),
        optimizer=AdamW(lr=7e-4, max_grad_norm=1.0),
        compute="int8",
        out=out,
    )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"  {prepared.trainable:,} parameters train; the bundle has {size / 1e6:.0f} MB")


def ask(device: Path, bundle: Path, adapter: Path) -> list[dict[str, str]]:
    """Return the device's answers, without and with the adapter: the likeliest token each time."""
    prompts = [part for question in (*SEEN, *UNSEEN) for part in ("--prompt", question)]
    print(f"  device$ edgepeft generate bundle --adapter {adapter.name} --prompt …", flush=True)
    command = [device, "-m", "edgepeft", "generate", bundle, *prompts, "--max-new-tokens", TOKENS, "--json"]
    lines = subprocess.run(
        [*map(str, command), "--adapter", adapter], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    return [json.loads(line) for line in lines]


def styled(answer: str) -> bool:
    return answer.startswith("Arr, ") and answer.endswith("matey!")


def right(question: str, answer: str) -> bool:
    return any(word.lower() in answer.lower() for word in UNSEEN[question])


def report(answers: list[dict[str, str]]) -> None:
    for answer in answers:
        print(f"  {answer['prompt']}{'' if answer['prompt'] in UNSEEN else ' (an example asks it)'}")
        for name in ("without", "with"):
            print(f"    {name:7}  {' '.join(answer[name].split())}")
    unseen = [answer for answer in answers if answer["prompt"] in UNSEEN]
    correct = {name: sum(right(answer["prompt"], answer[name]) for answer in unseen) for name in ("without", "with")}
    pirates = {name: sum(styled(answer[name]) for answer in unseen) for name in ("without", "with")}
    print(f"of {len(UNSEEN)} questions that no example asks:")
    print(f"  {pirates['without']} were answered like a pirate before, {pirates['with']} after")
    print(f"  {correct['without']} had the right word before, {correct['with']} after")
    assert pirates["without"] == 0 and pirates["with"] >= 0.75 * len(UNSEEN)
    assert correct["with"] >= 0.5 * correct["without"] > 0


def check_in_peft(work: Path, answers: list[dict[str, str]]) -> None:
    """Ask the model in fp32 with the adapter, in PyTorch, the same questions."""
    from peft import PeftModel

    source = edgepeft.load_source(smollm2())
    assert isinstance(source.model, torch.nn.Module) and source.text is not None and source.text.template is not None
    model = PeftModel.from_pretrained(source.model, work / "adapter").eval()
    tokenizer = tokenizer_in(source)
    prompts = [source.text.template.replace("{prompt}", answer["prompt"]) for answer in answers]
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])  # all at once, padded on the left
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    tokens = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
    texts = [tokenizer.decode(row[longest:].tolist()) for row in tokens]
    same = sum(text == answer["with"] for text, answer in zip(texts, answers, strict=True))
    pirates = sum(map(styled, texts))
    print(f"workstation: peft answers {pirates} of {len(answers)} like a pirate, {same} in the device's own words")
    assert pirates >= 0.75 * len(answers)


def tokenizer_in(source: edgepeft.Source):
    from tokenizers import Tokenizer

    return Tokenizer.from_str(source.files["tokenizer.json"].decode())


if __name__ == "__main__":
    main()
