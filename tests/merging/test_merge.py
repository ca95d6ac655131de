"""Updates back into PEFT, torch and ONNX, with the device's answers; and which updates are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import edgepeft
from edgepeft.aggregation.stacked import read_stack, write_stack
from edgepeft.errors import TargetExists, WrongSuffix
from edgepeft.merging import merge, to_onnx
from edgepeft.merging.errors import MergeError
from edgepeft.merging.targets.onnx_adapter import OnnxAdapter
from edgepeft_export.forward import from_torch
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.adapter_layout import LowRankPair
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError, NoDigest, TensorFileError, UpdateError, WrongTensors
from edgepeft_runtime.files.tensorfile import read_tensors
from edgepeft_runtime.train.update import read_update, write_update
from tests.support.bundles import Trained, convolutions, predictions
from tests.support.onnx_runs import TEXT, first_output
from tests.support.simulated_devices import drifted, send

PIXELS = {"image": np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32)}


def kinds(nodes: ir.Graph | onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in (nodes.node if isinstance(nodes, onnx.GraphProto) else nodes))


def test_peft_loads_the_merged_adapter(text: Trained, tmp_path: Path) -> None:
    """PeftModel.from_pretrained(base, merged) gives the device's logits within 1e-4."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    said: list[str] = []
    out = edgepeft.merge(text.bundle, text.update, to="peft", out=tmp_path / "adapter", on_progress=said.append)
    base = AutoModelForSequenceClassification.from_pretrained(text.model)
    model = PeftModel.from_pretrained(base, out).eval()
    with torch.no_grad():
        logits = model(**{name: torch.from_numpy(array) for name, array in TEXT.items()}).logits.numpy()
    assert np.abs(logits - predictions(text, TEXT)).max() < 1e-4
    assert np.abs(logits - base_predictions(text)).max() > 1e-2  # the adapter does something
    assert said[0].startswith("10 tensors")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 4, ["query", "value"])


def base_predictions(text: Trained) -> np.ndarray:
    with Trainer.open(text.bundle) as trainer:
        return trainer.predict(TEXT)["logits"]


def test_merged_bert_is_the_base_graph_with_folded_pairs(text: Trained, tmp_path: Path) -> None:
    """Every LoRA pair is folded: the merged model has the nodes of the base without LoRA, and needs no other file."""
    from transformers import AutoModelForSequenceClassification

    said: list[str] = []
    out = merge(text.bundle, text.update, to="onnx", out=tmp_path / "model.onnx", on_progress=said.append)
    assert said[0].startswith("4 LoRA pairs folded")
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert np.abs(first_output(out, TEXT) - predictions(text, TEXT)).max() < 1e-4
    base = AutoModelForSequenceClassification.from_pretrained(text.model).eval()
    base.classifier.requires_grad_(True)
    base.base_model.requires_grad_(False)
    plain = from_torch(base, {name: torch.from_numpy(array) for name, array in TEXT.items()})
    merged = onnx.load(out)
    assert kinds(merged.graph) == swept(plain.model)
    assert not [tensor.name for tensor in merged.graph.initializer if "lora" in tensor.name]


def swept(model: ir.Model) -> Counter[str]:
    """The operators of a forward graph once work that is done twice is put together, as in a bundle."""
    ir.passes.common.CommonSubexpressionEliminationPass()(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    return kinds(model.graph)


def test_folding_spares_what_is_tied_to_the_weight(causal: Trained, tmp_path: Path) -> None:
    """GPT-2's head shares its matrix with the embedding: LoRA on the head must not change the embedding."""
    said: list[str] = []
    out = merge(causal.bundle, causal.update, to="onnx", out=tmp_path / "model.onnx", on_progress=said.append)
    assert said[0].startswith("3 LoRA pairs folded")
    assert np.abs(first_output(out, TEXT) - predictions(causal, TEXT)).max() < 1e-4
    assert not [tensor.name for tensor in onnx.load(out).graph.initializer if "lora" in tensor.name]


def test_convolutions_are_folded_too(images: Trained, tmp_path: Path) -> None:
    """LoRA on convolutions, with stride and padding and pointwise, leaves the plain network."""
    out = merge(images.bundle, images.update, to="onnx", out=tmp_path / "model.onnx")
    assert np.abs(first_output(out, PIXELS) - predictions(images, PIXELS)).max() < 1e-4
    assert kinds(onnx.load(out).graph)["Conv"] == 2
    assert kinds(onnx.load(out).graph) == swept(from_torch(convolutions(), {"image": torch.zeros(2, 1, 8, 8)}).model)


def test_what_cannot_be_folded_is_bound_and_still_right(tmp_path: Path) -> None:
    """DoRA divides by a norm that depends on the pair: it stays on the graph, with the device's answers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["0", "2"], use_dora=True)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    example = {"input": torch.zeros(2, 4)}
    bundle = edgepeft.prepare(get_peft_model(layers, config), example, out=tmp_path / "bundle").bundle
    inputs = {"input": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}
    with Trainer.open(bundle) as trainer:
        for _ in range(3):
            trainer.step({**inputs, "labels": np.array([0, 1, 0, 1, 1])}, lr=0.1)
        update = trainer.save_update(tmp_path / "update.safetensors")
        expected = trainer.predict(inputs)["output"]
    said: list[str] = []
    out = merge(bundle, update, to="onnx", out=tmp_path / "model.onnx", on_progress=said.append)
    assert said[0].startswith("0 LoRA pairs folded")
    assert np.abs(first_output(out, inputs) - expected).max() < 1e-4


def test_large_models_keep_their_weights_next_to_them(
    text: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what protobuf can hold, weights go to <name>.data; a later, smaller model removes that file."""
    monkeypatch.setattr(to_onnx, "LARGEST_FILE", 10_000)
    out = merge(text.bundle, text.update, to="onnx", out=tmp_path / "model.onnx")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data"]
    assert np.abs(first_output(out, TEXT) - predictions(text, TEXT)).max() < 1e-4
    monkeypatch.undo()
    merge(text.bundle, text.update, to="onnx", out=out, overwrite=True)
    assert os.listdir(tmp_path) == ["model.onnx"]
    assert np.abs(first_output(out, TEXT) - predictions(text, TEXT)).max() < 1e-4


@pytest.mark.parametrize("name", ["state.pt", "state.safetensors"])
def test_torch_state_loads_into_the_model(regression: Trained, tmp_path: Path, name: str) -> None:
    """The state dict carries the model's own names, so load_state_dict accepts it."""
    from safetensors.torch import load_file

    out = merge(regression.bundle, regression.update, to="torch", out=tmp_path / name)
    state = torch.load(out, weights_only=True) if out.suffix == ".pt" else load_file(out)
    model = torch.nn.Linear(3, 2)
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    inputs = {"input": np.ones((2, 3), np.float32)}
    found = model(torch.ones(2, 3)).detach().numpy()
    assert np.abs(found - predictions(regression, inputs)).max() < 1e-5


def test_a_bundle_of_no_peft_model_names_what_fits(regression: Trained, tmp_path: Path) -> None:
    """There is no PEFT adapter of a whole linear layer; torch and onnx are offered."""
    with pytest.raises(MergeError, match=r"torch .*onnx"):
        merge(regression.bundle, regression.update, to="peft", out=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_foreign_update_is_refused_with_both_sides_named(text: Trained, images: Trained, tmp_path: Path) -> None:
    """An update of another base never gets into a model."""
    with pytest.raises(UpdateError) as caught:
        merge(text.bundle, images.update, to="onnx", out=tmp_path / "model.onnx")
    assert caught.value.code == "foreign-update"
    assert Bundle.open(text.bundle).base_sha256 in str(caught.value)
    assert Bundle.open(images.bundle).base_sha256 in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_stale_update_is_refused_with_both_sides_named(text: Trained, tmp_path: Path) -> None:
    """An update of an earlier round began from another adapter."""
    update = replace(read_update(text.update), adapter_sha256="5" * 64)
    stale = write_update(tmp_path / "stale.safetensors", update)
    with pytest.raises(UpdateError) as caught:
        merge(text.bundle, stale, to="peft", out=tmp_path / "adapter")
    assert caught.value.code == "stale-update"
    assert "5" * 64 in str(caught.value)
    assert Bundle.open(text.bundle).adapter_sha256 in str(caught.value)


def test_damaged_updates_are_refused(text: Trained, tmp_path: Path) -> None:
    """A truncated update, or one with any bit changed, is damaged. An adapter is no update."""
    content = text.update.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    bits = np.random.default_rng(0).integers(0, 8 * len(content), 40)
    variants = [content[:length] for length in (0, 7, 100, len(content) - 1)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        variants.append(bytes(flipped))
    for variant in variants:
        damaged.write_bytes(variant)
        with pytest.raises(TensorFileError):
            merge(text.bundle, damaged, to="torch", out=tmp_path / "state.pt")
    with pytest.raises(NoDigest, match="no digest"):
        merge(text.bundle, text.bundle / "adapter.safetensors", to="torch", out=tmp_path / "state.pt")
    assert os.listdir(tmp_path) == ["damaged.safetensors"]


def test_targets_are_not_overwritten_unasked(text: Trained, tmp_path: Path) -> None:
    """An existing output is replaced only on request, and only if it is of the same kind."""
    out = merge(text.bundle, text.update, to="peft", out=tmp_path / "adapter")
    with pytest.raises(TargetExists):
        merge(text.bundle, text.update, to="peft", out=out)
    merge(text.bundle, text.update, to="peft", out=out, overwrite=True)
    precious = tmp_path / "precious"
    shutil.copytree(text.bundle, precious)
    for to, target in (("peft", precious), ("torch", tmp_path / "state.bin"), ("gguf", tmp_path / "x")):
        with pytest.raises(EdgepeftError):
            merge(text.bundle, text.update, to=to, out=target, overwrite=True)
    assert read_tensors(precious / "adapter.safetensors").tensors
    assert sorted(os.listdir(tmp_path)) == ["adapter", "precious"]


# Aggregates


@pytest.fixture(scope="module")
def fleet(text: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Path]]:
    """Three devices of the text bundle, some way apart."""
    bundle = Bundle.open(text.bundle)
    return bundle, send(bundle, drifted(bundle, 3, 0.2), tmp_path_factory.mktemp("fleet"))


def test_an_aggregate_becomes_whatever_an_update_becomes(
    text: Trained, fleet: tuple[Bundle, list[Path]], tmp_path: Path
) -> None:
    """PEFT, torch and ONNX of a mean have the outputs of a device that loads it."""
    bundle, paths = fleet
    mean = edgepeft.aggregate(bundle, paths).save(tmp_path / "mean.safetensors")
    expected = predictions(Trained(text.bundle, mean, None), TEXT)
    assert (
        np.abs(peft_logits(text, edgepeft.merge(bundle, mean, to="peft", out=tmp_path / "p")) - expected).max() < 1e-4
    )
    assert np.abs(first_output(merge(bundle, mean, to="onnx", out=tmp_path / "m.onnx"), TEXT) - expected).max() < 1e-4
    state = torch.load(merge(bundle, mean, to="torch", out=tmp_path / "m.pt"), weights_only=True)
    assert {name: array.numpy().tobytes() for name, array in state.items()} == {
        name: array.tobytes() for name, array in read_update(mean).parameters.items()
    }


def peft_logits(text: Trained, adapter: Path) -> np.ndarray:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(text.model), adapter).eval()
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in TEXT.items()}).logits.numpy()


def test_a_stack_becomes_one_adapter_of_all_ranks(
    text: Trained, fleet: tuple[Bundle, list[Path]], tmp_path: Path
) -> None:
    """In PEFT and in ONNX the weights carry the mean of the devices' products; torch has no room for it."""
    bundle, paths = fleet
    stack = edgepeft.aggregate(bundle, paths, rule="stack").save(tmp_path / "stack.safetensors")
    adapter = edgepeft.merge(bundle, stack, to="peft", out=tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (12, 24)
    said: list[str] = []
    merged = merge(bundle, stack, to="onnx", out=tmp_path / "m.onnx", on_progress=said.append)
    assert said[0].startswith("4 LoRA pairs folded")
    assert np.abs(first_output(merged, TEXT) - peft_logits(text, adapter)).max() < 1e-4
    updates, stacked = [read_update(path).parameters for path in paths], read_stack(stack, bundle)
    for pair in bundle.manifest.adapter.pairs:
        exact = np.mean([device_product(own, pair) for own in updates], axis=0)
        assert np.allclose(device_product(stacked, pair), exact, atol=1e-6)
    with pytest.raises(MergeError) as caught:
        merge(bundle, stack, to="torch", out=tmp_path / "m.pt")
    assert caught.value.code == "stack-does-not-fit"
    with pytest.raises(EdgepeftError):
        Trainer.open(bundle, adapter=stack)


def device_product(parameters: dict[str, np.ndarray], pair: LowRankPair) -> np.ndarray:
    return parameters[pair.b].astype(np.float64) @ parameters[pair.a]


def test_a_foreign_or_damaged_stack_is_refused(
    fleet: tuple[Bundle, list[Path]], images: Trained, tmp_path: Path
) -> None:
    """By its base, by the shapes of its other tensors, and by its digest."""
    bundle, paths = fleet
    found = edgepeft.aggregate(bundle, paths, rule="stack")
    stack = found.save(tmp_path / "stack.safetensors")
    with pytest.raises(UpdateError, match="another base"):
        merge(images.bundle, stack, to="onnx", out=tmp_path / "m.onnx")
    name = bundle.manifest.adapter.pairs[0].b
    write_stack(stack, {**found.parameters, name: found.parameters[name][:, :-1]}, bundle)
    with pytest.raises(WrongTensors, match="does not fit"):
        merge(bundle, stack, to="onnx", out=tmp_path / "m.onnx")
    stack.write_bytes(stack.read_bytes()[:-4])
    with pytest.raises(TensorFileError, match="damaged"):
        merge(bundle, stack, to="onnx", out=tmp_path / "m.onnx")


def test_a_later_rounds_update_merges_with_its_start(text: Trained, tmp_path: Path) -> None:
    """Without the round's adapter it is stale, with it it is not."""
    with Trainer.open(text.bundle, adapter=text.update) as trainer:
        update = trainer.save_update(tmp_path / "update.safetensors")
    with pytest.raises(UpdateError, match="another round"):
        merge(text.bundle, update, to="onnx", out=tmp_path / "m.onnx")
    merge(text.bundle, update, to="onnx", out=tmp_path / "m.onnx", adapter=text.update)
    assert np.abs(first_output(tmp_path / "m.onnx", TEXT) - predictions(text, TEXT)).max() < 1e-4


# Adapters for a loaded graph


def on_call(graph: Path, adapter: Path, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a stock session without and with an adapter."""
    loaded, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    loaded.Load(str(adapter))
    options.add_active_adapter(loaded)
    session = onnxruntime.InferenceSession(graph)
    return tuple(np.asarray(session.run(None, inputs, run)[0]) for run in (None, options))  # type: ignore[return-value]


def test_onnxruntime_puts_an_adapter_on_a_loaded_graph(
    text: Trained, images: Trained, regression: Trained, tmp_path: Path
) -> None:
    """LoRA and heads, convolutions, a whole layer: without the adapter the base's outputs, with it the device's."""
    for name, trained, inputs in (
        ("text", text, TEXT),
        ("images", images, PIXELS),
        ("regression", regression, {"input": np.ones((2, 3), np.float32)}),
    ):
        out, base = tmp_path / f"{name}.onnx_adapter", tmp_path / f"{name}.onnx"
        merge(trained.bundle, trained.update, to=OnnxAdapter(base=str(base)), out=out)
        plain, adapted = on_call(base, out, inputs)
        with Trainer.open(trained.bundle) as trainer:
            assert np.abs(plain - next(iter(trainer.predict(inputs).values()))).max() < 1e-5
        assert np.abs(adapted - predictions(trained, inputs)).max() < 1e-5
        assert np.abs(adapted - plain).max() > 1e-3


def test_an_adapter_names_the_base_it_fits(text: Trained, images: Trained, tmp_path: Path) -> None:
    """Its model version is the beginning of the base's hash."""
    found = []
    for name, trained in (("text", text), ("images", images)):
        out = merge(trained.bundle, trained.update, to="onnx-adapter", out=tmp_path / f"{name}.onnx_adapter")
        found.append(onnxruntime.AdapterFormat.read_adapter(str(out)).get_model_version())
    assert found == [int(Bundle.open(trained.bundle).base_sha256[:7], 16) for trained in (text, images)]
    with pytest.raises(WrongSuffix, match="suffix"):
        merge(text.bundle, text.update, to="onnx-adapter", out=tmp_path / "m.bin")


def test_infer_onnx_itself_needs_what_the_adapter_brings(text: Trained, tmp_path: Path) -> None:
    """Python's run looks for required inputs before adapters: that is why there is a base with defaults."""
    out = merge(text.bundle, text.update, to="onnx-adapter", out=tmp_path / "a.onnx_adapter")
    with pytest.raises(ValueError, match="Required inputs"):
        on_call(text.bundle / "infer.onnx", out, TEXT)


def test_half_a_pair_is_no_peft_adapter(tmp_path: Path) -> None:
    """With A frozen by hand only B is sent: exact to average, correct in ONNX, refused where A would be drawn again."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 8)), LoraConfig(r=2, target_modules=["0"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    bundle = Bundle.open(edgepeft.prepare(model, torch.zeros(2, 6), loss="mse", out=tmp_path / "bundle").bundle)
    inputs = {"input": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    fleet = drifted(bundle, 3, 0.5)
    outputs = []
    for own in fleet:
        with Trainer.open(bundle, adapter=own) as trainer:
            outputs.append(trainer.predict(inputs)["output"])
    mean = edgepeft.aggregate(bundle, send(bundle, fleet, tmp_path / "u"))
    file = mean.save(tmp_path / "mean.safetensors")
    merged = first_output(merge(bundle, file, to="onnx", out=tmp_path / "m.onnx"), inputs)
    assert np.abs(merged - np.mean(outputs, axis=0)).max() < 1e-5
    with pytest.raises(MergeError) as caught:
        merge(bundle, file, to="peft", out=tmp_path / "adapter")
    assert caught.value.code == "half-a-pair"
