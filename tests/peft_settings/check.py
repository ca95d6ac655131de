"""Trains an adapter by edgepeft and by peft, and compares losses and outputs."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import EdgepeftError
from tests.architectures.check import Result
from tests.peft_settings.cases import Case
from tests.peft_settings.networks import EXAMPLES, Example

STEPS, LR, TOLERANCE = 3, 0.05, 1e-4
RATES = {"RANDLORA": 1e-4}
"""Learning rates of kinds whose losses diverge otherwise, where rounding grows by a thousand in each step."""


def check(case: Case) -> Result:
    """Prepare and train a case. What peft itself refuses is ``invalid``."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, example = adapted(case), EXAMPLES[case.network]
            _losses(case, adapted(case), example)
        except Exception as error:  # whatever peft raises
            return Result("invalid", case.kind, _line(error))
        try:
            return _compared(case, model, example, Path(folder))
        except EdgepeftError as error:
            return Result(f"refused {error.code}", case.kind, _line(f"{error.message} {error.context or ''}"))
        except Exception as error:  # a defect
            return Result("failed", case.kind, _line(error))


def adapted(case: Case) -> nn.Module:
    """Return the network with the adapter, whose values are no longer those of an identity."""
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    torch.manual_seed(0)
    model = get_peft_model(EXAMPLES[case.network].build(), PEFT_TYPE_TO_CONFIG_MAPPING[case.kind](**case.settings))
    draw = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def _compared(case: Case, model: nn.Module, example: Example, folder: Path) -> Result:
    inputs = example.inputs()
    loss = "causal_lm" if example.causal else "cross_entropy"
    optimizer = SGD(lr=RATES.get(case.kind, LR))
    given = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])} if example.causal else inputs
    bundle = edgepeft.prepare(model, given, loss=loss, optimizer=optimizer, out=folder / "b", generation=False).bundle
    fed = {name: tensor.numpy() for name, tensor in given.items()}
    with Trainer.open(bundle) as trainer:
        found = [trainer.step({**fed, "labels": _labels(example).numpy()}) for _ in range(STEPS)]
        outputs = trainer.predict(fed)
    trained = adapted(case)
    expected = _losses(case, trained, example)
    with torch.no_grad():
        wanted = _scores(trained, example, given).numpy()
    off = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    got = next(iter(outputs.values()))
    output = float(np.abs(got - wanted[:, -got.shape[1] :]).max() / max(1.0, np.abs(wanted).max()))
    status = "right" if max(off, output) <= TOLERANCE else "wrong"
    return Result(status, case.kind, f"loss {off:.1e}, outputs {output:.1e}")


def _losses(case: Case, model: nn.Module, example: Example) -> list[float]:
    inputs = example.inputs()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATES.get(case.kind, LR))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = _loss(model, example, inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _loss(model: nn.Module, example: Example, inputs: dict[str, Tensor]) -> Tensor:
    labels = _labels(example)
    if example.causal:
        return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), labels=labels).loss
    return nn.functional.cross_entropy(model(**inputs), labels)


def _scores(model: nn.Module, example: Example, given: dict[str, Tensor]) -> Tensor:
    result = model(**given)
    return result.logits if example.causal else result


def _labels(example: Example) -> Tensor:
    return example.inputs()["input_ids"] if example.causal else torch.tensor([0, 1, 2, 0])


def _line(error: Any) -> str:
    named = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return " ".join(named.split())[:220]
