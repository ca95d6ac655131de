"""Programs of several calls: the results of the whole model, values freed in time, bad programs refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.plan import plan
from edgepeft_runtime.engine.sessions import Sessions
from edgepeft_runtime.errors import BundleError, EdgepeftError
from edgepeft_runtime.train.trainer import Trainer
from tests.support import segmented_bundle
from tests.support.damage import assert_equal_bits, rows
from tests.support.segmented_bundle import BACKWARD, FORWARD, HEADS, START
from tests.support.tiny_bundle import examples


@pytest.fixture
def changed(segmented: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Makes a copy with another manifest."""

    def copy(change: Callable[[dict[str, Any]], object]) -> Path:
        path = Path(shutil.copytree(segmented, tmp_path / "copy"))
        manifest = json.loads((path / "manifest.json").read_bytes())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return path

    return copy


def test_steps_equal_those_of_torch(segmented: Path) -> None:
    """20 steps of AdamW over blocks that share graphs, with batches of several sizes and ignored labels."""
    batches = [examples(size, seed=size) for size in (8, 1, 13, 8, 64) * 4]
    batches[0]["labels"][2] = -100
    losses, parameters = segmented_bundle.torch_losses(segmented, batches)
    with Trainer.open(segmented) as trainer:
        np.testing.assert_allclose([trainer.step(batch) for batch in batches], losses, rtol=1e-5)
        for ours, theirs in zip(trainer.parameters().values(), parameters, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-6)


def test_micro_batches_add_up(segmented: Path) -> None:
    """Gradients of several micro-batches and several calls are added to the same accumulators."""
    batch = examples(12)
    with Trainer.open(segmented) as whole, Trainer.open(segmented) as parts:
        assert parts.step(*(rows(batch, *r) for r in ((0, 5), (5, 6), (6, 12)))) == pytest.approx(whole.step(batch))
        for ours, theirs in zip(parts.parameters().values(), whole.parameters().values(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_evaluation_and_prediction_run_their_programs(segmented: Path) -> None:
    """Loss and outputs are those before the step that has the same loss."""
    batch = examples(9)
    with Trainer.open(segmented) as trainer:
        logits = trainer.predict(batch)["logits"]
        evaluation = trainer.evaluate(batch)
        assert evaluation.loss == pytest.approx(trainer.step(batch), rel=1e-6)
        assert evaluation.accuracy == (logits.argmax(1) == batch["labels"]).mean()


def test_a_run_resumes_to_the_bit(segmented: Path, tmp_path: Path) -> None:
    """As with one call."""
    batches = [examples(8, seed=seed) for seed in range(6)]
    with Trainer.open(segmented, threads=1) as trainer:
        for batch in batches:
            trainer.step(batch)
        straight = trainer.parameters()
    for part in (batches[:2], batches[2:]):
        with Trainer.open(segmented, state=tmp_path / "state", threads=1) as trainer:
            for batch in part:
                trainer.step(batch)
            trainer.save()
            resumed = trainer.parameters()
    assert_equal_bits(resumed, straight)


def test_values_are_freed_after_their_last_use(segmented: Path) -> None:
    """A plan runs each graph in order, leaves out what nobody needs, and keeps no activation longer than needed."""
    bundle = Bundle.open(segmented)
    sessions = Sessions(bundle, None)
    steps = plan(bundle.manifest, "train", sessions.interface)
    assert [step.graph for step in steps] == [START, FORWARD, FORWARD, HEADS["train"], BACKWARD, BACKWARD]
    assert [set(step.frees) for step in steps] == [set(), set(), set(), {"h2"}, {"h1", "dh2"}, {"h0", "dh1"}]
    assert dict(steps[4].writes) == {"dx": "dh1"} and dict(steps[5].writes) == {}
    infer = plan(bundle.manifest, "infer", sessions.interface)
    assert [set(step.frees) for step in infer] == [set(), {"h0"}, {"h1"}, {"h2"}]


def test_a_known_value_saves_the_calls_before_it(segmented: Path) -> None:
    """Also where it is needed again later: the backward graph recomputes its block from it."""
    bundle = Bundle.open(segmented)
    steps = plan(bundle.manifest, "train", Sessions(bundle, None).interface, known=["h0"])
    assert [step.graph for step in steps] == [FORWARD, FORWARD, HEADS["train"], BACKWARD, BACKWARD]


STATIC: dict[str, Callable[[dict[str, Any]], object]] = {
    "no-programs": lambda m: m.pop("programs"),
    "no-train": lambda m: m["programs"].pop("train"),
    "unknown-field": lambda m: m["programs"]["train"][0].update(loops=2),
    "unlisted-graph": lambda m: m["programs"]["train"][0].update(graph="segments/none.onnx"),
    "graph-that-is-no-graph": lambda m: m["programs"]["train"][0].update(graph="weights.bin"),
    "unknown-bucket": lambda m: m["programs"]["train"][3]["accumulate"][0].update(bucket="gradients.9"),
    "no-gradient": lambda m: m["programs"]["train"][3].pop("accumulate"),
    "offset-outside": lambda m: m["programs"]["train"][3]["accumulate"][0].update(offset=18),
    "offset-negative": lambda m: m["programs"]["train"][3]["accumulate"][0].update(offset=-1),
    "gradient-in-eval": lambda m: m["programs"]["eval"][3].update(accumulate=m["programs"]["train"][3]["accumulate"]),
    "selects-nothing": lambda m: m["programs"].update(select=m["programs"]["train"]),
    "generates-nothing": lambda m: m["programs"].update(generate=m["programs"]["infer"]),
    "frozen-outside": lambda m: m["frozen"][2].update(offset=3 * 4096),
    "frozen-unaligned": lambda m: m["frozen"][0].update(offset=4),
    "frozen-size": lambda m: m["frozen"][0].update(bytes=92),
    "frozen-shape": lambda m: m["frozen"][0].update(shape=[2**40, 2**40]),
    "frozen-twice": lambda m: m["frozen"][1].update(name="base"),
    "frozen-parameter": lambda m: m["frozen"][1].update(name="head.bias"),
    "unknown-cache": lambda m: m.update(cache={"values": "h0"}),
}
AGAINST_GRAPHS: dict[str, Callable[[dict[str, Any]], object]] = {
    "missing-value": lambda m: m["programs"]["train"][1]["inputs"].update(h="h9"),
    "later-value": lambda m: m["programs"]["train"][1]["inputs"].update(h="h2"),
    "written-twice": lambda m: m["programs"]["train"][2]["outputs"].update(y="h1"),
    "writes-a-parameter": lambda m: m["programs"]["train"][1]["outputs"].update(y="head.bias"),
    "writes-a-frozen-tensor": lambda m: m["programs"]["infer"][1]["outputs"].update(y="base"),
    "two-outputs-one-value": lambda m: m["programs"]["train"][3]["outputs"].update(loss_sum="dh2"),
    "no-result": lambda m: m["programs"]["eval"].pop(),
    "unknown-input": lambda m: m["programs"]["train"][0]["inputs"].update(z="x"),
    "unknown-output": lambda m: m["programs"]["train"][0]["outputs"].update(z="x"),
    "unknown-gradient": lambda m: m["programs"]["train"][3]["accumulate"][0].update(output="nothing"),
    "labels-in-infer": lambda m: m["programs"].update(infer=m["programs"]["eval"]),
    "unknown-cache-value": lambda m: m.update(cache={"value": "h9"}),
    "cache-of-a-gradient": lambda m: m.update(cache={"value": "dh1"}),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_contradiction_to_the_manifest_is_refused(name: str, changed: Any) -> None:
    """Without a look at the graphs."""
    with pytest.raises(BundleError) as error:
        Bundle.open(changed(STATIC[name]), verify=False)
    assert error.value.code == "bad-manifest" and error.value.context


def _use(path: Path, verify: bool) -> None:
    with Trainer.open(Bundle.open(path, verify=verify)) as trainer:
        trainer.step(examples(4))
        trainer.evaluate(examples(4))
        trainer.predict(examples(4))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", AGAINST_GRAPHS)
def test_a_contradiction_to_the_graphs_is_refused(name: str, verify: bool, changed: Any) -> None:
    """When the bundle is verified; otherwise before the program runs."""
    path = changed(AGAINST_GRAPHS[name])
    with pytest.raises(EdgepeftError) as error:
        _use(path, verify)
    assert error.value.code == "bad-program" and error.value.context


def test_a_gradient_beyond_its_bucket_is_refused(changed: Any) -> None:
    """Its size is known only then. The parameters stay as they were."""
    path = changed(lambda m: m["programs"]["train"][3]["accumulate"][1].update(offset=13))
    with Trainer.open(path) as trainer:
        before = trainer.parameters()
        with pytest.raises(BundleError) as error:
            trainer.step(examples(4))
        assert error.value.code == "bad-program"
        assert_equal_bits(trainer.parameters(), before)


def test_a_checkpoint_of_another_program_is_refused(segmented: Path, changed: Any, tmp_path: Path) -> None:
    """A program is part of what computes a run."""
    with Trainer.open(segmented, state=tmp_path / "state") as trainer:
        trainer.step(examples(4))
        trainer.save()
    path = changed(lambda m: m["programs"]["train"][4]["accumulate"][0].update(offset=0))
    with pytest.raises(EdgepeftError, match="another bundle"):
        Trainer.open(path, state=tmp_path / "state")
