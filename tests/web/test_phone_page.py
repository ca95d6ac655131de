"""The phone page, used as a person would in a window of 390 x 844: taught, compared, exported, offline, killed."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw

import edgepeft
from edgepeft.sync import accepted, collect
from edgepeft_runtime import Trainer, read_tensors, read_update
from tests.support.networks import minilm_path
from tests.web.chats import Invited, inviting
from tests.web.toolchain import PAGE, browse, installed, run

pytestmark = pytest.mark.slow

BUNDLE = PAGE / "bundles" / "drawings"
TABS = ("drawings", "photos", "sentences")
WORDS = ["tent", "hourglass", "box", "wave"]
SENTENCES = {
    "train": {
        "food": ["The soup needs more salt.", "We had rice and beans.", "Bake the bread for an hour."],
        "weather": ["It will rain tomorrow.", "The wind is cold today.", "Snow fell on the hills."],
    },
    "ask": {"food": "Fry the onions in butter.", "weather": "A storm comes from the sea."},
}


def _photograph(word: str, draw: np.random.Generator) -> Image.Image:
    """Make a photo of a thing: in another place and light, before another noisy background, each time."""
    noise = draw.normal(0, 18, (90, 120, 3)) + draw.uniform(60, 200, 3)
    picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    pen, light = ImageDraw.Draw(picture), draw.uniform(0.7, 1.2)
    side = int(draw.integers(45, 70))
    left, top = (int(draw.integers(15, limit - side)) for limit in (105, 90))
    box = (left, top, left + side, top + side)
    shade = {"apple": (200, 40, 30), "book": (40, 70, 190), "leaf": (50, 150, 50)}[word]
    colour = tuple(int(min(255, light * value)) for value in shade)
    if word == "apple":
        pen.ellipse(box, fill=colour)
    elif word == "book":
        pen.rectangle(box, fill=colour, outline=(240, 240, 230), width=4)
    else:
        pen.polygon([(left, top + side), (left + side // 2, top), (left + side, top + side)], fill=colour)
    return picture


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, sentences and the bundle for sentences."""
    folder, draw = tmp_path_factory.mktemp("phone"), np.random.default_rng(0)
    for word in ("apple", "book", "leaf"):
        (folder / "photos" / word).mkdir(parents=True)
        for index in range(8):
            _photograph(word, draw).save(folder / "photos" / word / f"{index}.jpg", quality=90)
    (folder / "sentences.json").write_text(json.dumps(SENTENCES), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PAGE)])
        from prepare_sentences import prepare

        prepare(minilm_path(), folder / "sentences")
    return folder


@pytest.fixture(scope="module")
def seen(work: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened on the page, which is built first."""
    installed(PAGE)
    run("npx", "tsc", cwd=PAGE)
    run("node", "build.mjs", cwd=PAGE)
    bundles, hosts = {tab: PAGE / "bundles" / tab for tab in TABS} | {"sentences": work / "sentences"}, list[Invited]()
    with ExitStack() as stack:
        for tab in TABS:
            port = hosts[0].port if hosts else None
            hosts.append(stack.enter_context(inviting(bundles[tab], tmp_path_factory.mktemp(tab), port)))
            (work / f"{tab}.link").write_text(hosts[-1].link, "utf-8")
        found = browse("phone", PAGE / "dist", work, hosts[0].port)
        collected = [collect([invited.host.received], invited.host) for invited in hosts]
        return found | {"collected": collected, "accepted": [accepted(invited.host) for invited in hosts]}


def test_it_is_formatted_and_typed() -> None:
    """Prettier has nothing to change, and ``tsc --strict`` nothing to say."""
    run("npm", "run", "lint", cwd=installed(PAGE))


def test_it_knows_no_word_before_and_the_drawings_after(seen: dict[str, Any]) -> None:
    """Before the training the model prefers no word, and says so; afterwards it knows each of four new drawings."""
    drawings = seen["drawings"]
    assert drawings["untaught"] == "?does not know"
    before, after = zip(*drawings["guesses"], strict=True)
    assert before == ("?",) * 4 and list(after) == WORDS
    first, last = (int(percent) for percent in drawings["accuracy"].removesuffix(" %").split(" → "))
    assert first <= 40 and last >= 80


def test_it_learns_things_on_photos(seen: dict[str, Any]) -> None:
    """It recognises new photos, and takes one from the camera."""
    guesses = seen["photos"]["guesses"]
    assert all(before == "?" for _, before, _ in guesses)
    assert [word for word, _, _ in guesses] == [after for _, _, after in guesses]


def test_it_learns_topics_of_sentences(seen: dict[str, Any]) -> None:
    """MiniLM in int8 sorts new sentences after six examples."""
    guesses = seen["sentences"]["guesses"]
    assert all(before == "?" for _, before, _ in guesses)
    assert [word for word, _, _ in guesses] == [after for _, _, after in guesses]


def test_axe_finds_nothing(seen: dict[str, Any]) -> None:
    """In both themes: empty, and after each of three trainings."""
    assert seen["axe"] == []


def test_it_says_when_the_storage_is_full(seen: dict[str, Any]) -> None:
    assert seen["full"].startswith("The storage of this browser is full.")


def test_the_page_stays_alive_while_it_trains(seen: dict[str, Any]) -> None:
    """A sign drawn meanwhile is recognised before the training ends."""
    assert seen["kill"]["alive"]


def test_the_host_merges_what_was_exported(seen: dict[str, Any], work: Path) -> None:
    """The update is whole, belongs to the bundle, records the training, and becomes an ``.onnx`` model."""
    pulled = edgepeft.pull([work], work / "updates", BUNDLE)
    assert len(pulled.accepted) == 1 and not pulled.refused
    path = pulled.accepted[0].path
    update = read_update(path)
    assert update.steps == seen["offline"]["steps"] and update.num_examples == 36 * 60
    assert update.loss_before is not None and update.loss_after is not None
    assert update.loss_after < 0.5 * update.loss_before
    image = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    merged = edgepeft.merge(BUNDLE, path, to="onnx", out=work / "merged.onnx")
    (logits,) = onnxruntime.InferenceSession(merged).run(None, {"image": image})
    with Trainer.open(BUNDLE) as trainer:
        np.testing.assert_allclose(trainer.predict({"image": image}, adapter=path)["output"], logits, atol=1e-4)


def test_the_host_accepts_what_was_delivered(seen: dict[str, Any], work: Path) -> None:
    """From each tab, each to the host of its model; of the drawings, the parameters are those of the export."""
    assert [given["address"] for given in seen["delivery"]] == [""] * 3
    for given, found, kept in zip(seen["delivery"], seen["collected"], seen["accepted"], strict=True):
        assert given["said"].startswith("Delivered ")
        assert len(found.accepted) == 1 and not found.refused
        ((entry, _),) = kept
        assert (entry.device, entry.round) == ("phone-1", 1)
    ((_, path),) = seen["accepted"][0]
    exported = read_tensors(work / "update.safetensors").tensors
    for name, array in read_tensors(path).tensors.items():
        np.testing.assert_array_equal(array, exported[name], err_msg=name)


def test_it_works_without_a_network(seen: dict[str, Any]) -> None:
    """After the first load, without the server, it opens with its drawings and adapter, and recognises a sign."""
    assert seen["offline"]["steps"] > 0 and seen["offline"]["guess"] == "box"
    assert seen["offline"]["status"].startswith("48 examples")


def test_a_killed_browser_loses_only_unsaved_steps(seen: dict[str, Any]) -> None:
    """It is saved every ten steps and after each epoch, and the training resumes from there."""
    kill = seen["kill"]
    assert kill["steps"] >= kill["seen"] - 10
    assert kill["button"] == f"Resume from step {kill['steps']}"
    assert kill["next"] > kill["steps"]
