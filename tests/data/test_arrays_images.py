"""Arrays in .npz files, and folders of images by class."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepeft.data import load
from edgepeft.data.pictures import folder as image_folder
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import DataError, EdgepeftError, MissingExtra
from tests.support.bundles import Trained


@pytest.fixture
def bundle(images: Trained) -> Bundle:
    return Bundle.open(images.bundle)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_npz_is_accepted_by_name(bundle: Bundle, tmp_path: Path) -> None:
    """Arrays named as inputs and labels are a data set; labels are not needed for prediction."""
    pixels = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", image=pixels, labels=np.array([0, 1, 1, 0, 1]))
    batch = load(tmp_path / "d.npz", bundle).batch(np.array([3, 1]))
    assert np.array_equal(batch["image"], pixels[[3, 1]])
    assert batch["labels"].tolist() == [0, 1]
    np.savez(tmp_path / "e.npz", image=pixels)
    assert len(load(tmp_path / "e.npz", bundle, labelled=False)) == 5


GOOD_IMAGES = np.zeros((300, 1, 8, 8), np.float32)
MISTAKES = [
    ({"image": GOOD_IMAGES}, ["lacks 'labels'"]),
    ({"image": GOOD_IMAGES, "labels": np.zeros(300, int), "weight": np.ones(300)}, ["no input or label 'weight'"]),
    ({"image": GOOD_IMAGES, "labels": np.zeros(299, int)}, ["image: 300", "labels: 299"]),
    ({"image": GOOD_IMAGES[:, :, :4], "labels": np.zeros(300, int)}, ["wrong shape"]),
    ({"image": GOOD_IMAGES, "labels": np.arange(300) // 299 * 7}, ["found 7", "from example 256"]),
    ({"image": GOOD_IMAGES[:0], "labels": np.zeros(0, int)}, ["no examples"]),
    ({"image": GOOD_IMAGES, "labels": np.array([{}] * 300)}, ["Python objects"]),
]


@pytest.mark.parametrize(("arrays", "words"), MISTAKES)
def test_a_mistake_in_npz_is_named_with_the_file(
    bundle: Bundle, tmp_path: Path, arrays: dict[str, np.ndarray], words: list[str]
) -> None:
    """It is met on loading, not at the step that comes across it."""
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(EdgepeftError) as caught:
        load(tmp_path / "d.npz", bundle)
    assert "d.npz" in caught.value.message
    for word in words:
        assert word in str(caught.value)


def test_images_are_resized_scaled_and_normalised(bundle: Bundle, tmp_path: Path) -> None:
    """For any size and colours of the files, the model's inputs have the size it was prepared for."""
    save(tmp_path / "light" / "a.png", np.full((16, 20, 3), 255))
    save(tmp_path / "dark" / "b.png", np.zeros((8, 8)))
    save(tmp_path / "dark" / "c.jpg", np.full((5, 3), 51))
    data = load(tmp_path, bundle)
    batch = data.batch(np.array([2, 0, 1]))
    assert batch["labels"].tolist() == [1, 0, 0]
    assert batch["image"].shape == (3, 1, 8, 8)
    assert batch["image"].dtype == np.float32
    # (value / 255 - 0.5) / 0.25
    assert np.allclose(batch["image"][0], 2.0)
    assert np.allclose(batch["image"][1], -2.0)
    assert np.allclose(batch["image"][2], (0.2 - 0.5) / 0.25, atol=0.05)
    with Trainer.open(bundle) as trainer:
        assert trainer.evaluate(data).examples == 3


def test_images_beyond_the_memory_set_aside_are_read_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set larger than memory gives the same batches."""
    for number in range(4):
        save(tmp_path / "dark" / f"{number}.png", np.full((8, 8), 60 * number))
    kept = load(tmp_path, bundle).batch(np.arange(4))
    monkeypatch.setattr(image_folder, "KEPT_BYTES", 100)
    again = load(tmp_path, bundle).batch(np.arange(4))
    assert np.array_equal(kept["image"], again["image"])


def test_pictures_of_a_camera_that_was_upright_are_rotated(bundle: Bundle, tmp_path: Path) -> None:
    """The orientation in a photo's metadata is applied."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    (tmp_path / "dark").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "dark" / "a.png", exif=exif)
    found = load(tmp_path, bundle).batch(np.array([0]))["image"][0, 0]
    assert np.allclose(found[7], 2.0)
    assert np.allclose(found[0], -2.0)


def test_unlabelled_images_may_lie_anywhere(bundle: Bundle, tmp_path: Path) -> None:
    """For prediction a plain folder of images is enough, and other files in it do not matter."""
    save(tmp_path / "a.png", np.zeros((8, 8)))
    save(tmp_path / "holiday" / "b.png", np.zeros((8, 8)))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image either")
    assert set(load(tmp_path, bundle, labelled=False).batch(np.arange(2))) == {"image"}


def test_mistakes_in_a_folder_of_images_name_the_file(bundle: Bundle, tmp_path: Path, text: Trained) -> None:
    """No images, images outside the classes, unknown classes, broken or too deep images, other bundles."""
    with pytest.raises(DataError, match="no images"):
        load(tmp_path, bundle)
    good = save(tmp_path / "dark" / "a.png", np.zeros((8, 8)))
    with pytest.raises(DataError, match="does not accept images"):
        load(tmp_path, Bundle.open(text.bundle))
    stray = save(tmp_path / "b.png", np.zeros((8, 8)))
    with pytest.raises(DataError, match=r"b\.png is not in the folder"):
        load(tmp_path, bundle)
    stray.unlink()
    unknown = save(tmp_path / "darkk" / "a.png", np.zeros((8, 8)))
    with pytest.raises(DataError, match=r"darkk[\s\S]*'dark' \(is it that\?\)"):
        load(tmp_path, bundle)
    unknown.unlink()
    for content in (good.read_bytes()[:45], b"", b"nonsense"):
        (tmp_path / "dark" / "z.png").write_bytes(content)
        with pytest.raises(DataError, match=r"Cannot decode the image .*z\.png"):
            load(tmp_path, bundle)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "dark" / "z.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        load(tmp_path, bundle)


def test_missing_pillow_names_the_extra(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error on a device without the package says what to install."""
    save(tmp_path / "dark" / "a.png", np.zeros((8, 8)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"edgepeft\[images\]"):
        load(tmp_path, bundle)


FLAT = 5000


@pytest.mark.parametrize("mode", ["1", "P", "RGB"])
def test_flat_image_of_very_many_pixels_is_refused(bundle: Bundle, tmp_path: Path, mode: str) -> None:
    """A few kilobytes of PNG that would take a hundred megabytes: by its size, before it is decoded."""
    save(tmp_path / "light" / "a.png", np.zeros((8, 8)))
    (tmp_path / "dark").mkdir()
    Image.new(mode, (FLAT, FLAT)).save(tmp_path / "dark" / "z.png")
    with pytest.raises(DataError, match="too many for a file of its size"):
        load(tmp_path, bundle)


def test_image_of_another_format_is_refused_whatever_its_name(bundle: Bundle, tmp_path: Path) -> None:
    """Pillow would run another program for some of them."""
    save(tmp_path / "light" / "a.png", np.zeros((8, 8)))
    (tmp_path / "dark").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "dark" / "z.png", format="EPS")
    with pytest.raises(DataError, match=r"Cannot decode the image .*z\.png"):
        load(tmp_path, bundle)
