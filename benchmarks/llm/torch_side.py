"""PyTorch with peft in fp32."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.llm.serving import Step, serve
from benchmarks.llm.shapes import METHODS, RANK
from benchmarks.settings import LEARNING_RATE


def main(model: Path, batch: Path, threads: int, method: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    ids = torch.from_numpy(np.load(batch)["input_ids"])

    def open_() -> Step:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, use_cache=False)
        adapted = get_peft_model(base, LoraConfig(r=RANK, target_modules=list(METHODS[method]), task_type="CAUSAL_LM"))
        trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)

        def step() -> float:
            optimizer.zero_grad()
            loss = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
            loss.backward()
            optimizer.step()
            return float(loss.item())

        return step

    serve(open_)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
