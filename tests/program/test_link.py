"""A segmented bundle is merged, generates and resumes like one of whole graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import edgepeft
from edgepeft.methods import attach, by_name
from edgepeft.preparation.options import Compression
from edgepeft_export.optimizers import SGD
from edgepeft_export.ort_training.graphs import training_model
from edgepeft_export.program.link import link
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from tests.support.networks import NETWORKS, to_numpy


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An int8 Llama with a cache, as whole graphs and as segments."""
    network, folder = NETWORKS["llama"], tmp_path_factory.mktemp("bundles")
    return {
        weights: edgepeft.prepare(
            attach(by_name("lora", rank=2), network.model()),
            network.example(),
            loss=network.loss,
            optimizer=SGD(lr=0.05, momentum=0.9),
            compute="int8",
            compression=Compression(weights=weights),
            generation=True,
            out=folder / weights,
        ).bundle
        for weights in ("constant", "input")
    }


def _batches(count: int) -> list[dict[str, np.ndarray]]:
    return [to_numpy(*batch) for batch in NETWORKS["llama"].batches(count)]


def _update(bundle: Path, folder: Path) -> Path:
    with Trainer.open(bundle, threads=1) as trainer:
        for batch in _batches(3):
            trainer.step(batch)
        return trainer.save_update(folder / f"{bundle.name}.safetensors")


def test_a_merged_model_is_that_of_whole_graphs(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Outputs agree with those of the whole bundle's model, and with the device's own."""
    results, batch = [], _batches(1)[0]
    for name, bundle in bundles.items():
        update = _update(bundle, tmp_path)
        merged = edgepeft.merge(bundle, update, to="onnx", out=tmp_path / f"{name}.onnx")
        fed = {key: batch[key] for key in ("input_ids", "attention_mask")}
        results.append(ort.InferenceSession(merged).run(None, fed)[0])
        with Trainer.open(bundle, adapter=update) as trainer:
            results.append(trainer.predict(fed)["logits"])
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=3e-3, atol=3e-3)


def test_segments_generate_what_whole_graphs_generate(bundles: dict[str, Path]) -> None:
    """With a cache; the decoding graph is cut in the same way."""
    texts = []
    for bundle in bundles.values():
        with Trainer.open(bundle) as trainer:
            texts.append(trainer.generate([5, 9, 31, 7], max_new_tokens=12))
    assert texts[0] == texts[1]
    assert len(Bundle.open(bundles["input"]).manifest.programs.generate or ()) > 2


def test_a_linked_step_has_the_loss_and_the_gradients(bundles: dict[str, Path]) -> None:
    """Of the train program as one graph; ONNX Runtime Training's model is made of it."""
    found = []
    for path in bundles.values():
        bundle, batch = Bundle.open(path), _batches(1)[0]
        model = ir.external_data.load_to_model(link(bundle, "train"))
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
        names = [value.name for value in session.get_outputs()]
        fed = {**batch, **bundle.adapter()}
        outputs = dict(zip(names, session.run(None, {v.name: fed[v.name] for v in session.get_inputs()}), strict=True))
        flat = {}
        for bucket in bundle.manifest.buckets:
            shapes = {spec.name: spec.size for spec in bundle.manifest.parameters}
            ends = np.cumsum([shapes[name] for name in bucket.members])[:-1]
            flat.update(zip(bucket.members, np.split(outputs[f"{bucket.name}.gradient"], ends), strict=True))
        found.append((outputs["loss_sum"], flat))
        assert training_model(bundle).graph.outputs[0].name == "loss"
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for name, gradient in found[0][1].items():
        np.testing.assert_allclose(found[1][1][name], gradient, rtol=3e-3, atol=3e-3, err_msg=name)


def test_a_run_of_segments_resumes_to_the_bit(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Four steps at once, and two and two with a checkpoint between them."""
    batches = _batches(4)
    with Trainer.open(bundles["input"]) as trainer:
        expected = [trainer.step(batch) for batch in batches]
    with Trainer.open(bundles["input"], state=tmp_path / "state") as trainer:
        found = [trainer.step(batch) for batch in batches[:2]]
        trainer.save()
    with Trainer.open(bundles["input"], state=tmp_path / "state") as trainer:
        found += [trainer.step(batch) for batch in batches[2:]]
    assert found == expected
