"""A device processes an image like the model directory's own processor."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from edgepeft.data.pictures.pixels import fitted, normalized
from edgepeft.sources.directories.image_processor import FILE, image_spec
from edgepeft.sources.errors import SourceError, UnusableImageProcessor
from edgepeft.sources.load import load_source
from edgepeft_runtime.bundle.specs import ImageSpec
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.networks import tiny_vit

SIZES = ((24, 24), (23, 61), (90, 31), (150, 200), (7, 400))
"""Heights and widths: small, wide, tall, large, very narrow."""


def _images(mode: str = "RGB") -> list[Any]:
    draw = np.random.default_rng(7)
    shapes = [(height, width, *(() if mode == "L" else (3,))) for height, width in SIZES]
    return [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def _spec(processor: Any, folder: Path, **config: Any) -> ImageSpec:
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    return image_spec(folder, SimpleNamespace(**config))


def _same(spec: ImageSpec, processor: Any, mode: str = "RGB") -> bool:
    for image in _images(mode):
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        found = normalized(fitted(image, spec), spec)
        assert found.shape == expected.shape
        if np.abs(found - expected).max() > 1e-5 * max(1, np.abs(expected).max()):
            return False
    return True


SQUARE, EDGE, CROP = {"height": 32, "width": 32}, {"shortest_edge": 40}, {"height": 32, "width": 28}
PROCESSORS = [
    ("vit", "ViT", {"size": SQUARE}),
    ("vit", "ViT", {"size": {"height": 24, "width": 40}, "resample": 3}),
    ("vit", "ViT", {"size": SQUARE, "resample": 0, "do_normalize": False}),
    ("vit", "ViT", {"size": SQUARE, "do_rescale": False}),
    ("vit", "ViT", {"size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
    ("vit", "ViT", {"size": SQUARE, "do_center_crop": True, "crop_size": {"height": 41, "width": 20}}),
    ("vit", "ViT", {"do_resize": False, "do_center_crop": True, "crop_size": CROP}),
    ("deit", "DeiT", {"size": {"height": 40, "width": 40}, "crop_size": CROP}),
    ("convnext", "ConvNext", {"size": {"shortest_edge": 32}}),
    ("convnext", "ConvNext", {"size": {"shortest_edge": 33}, "crop_pct": 0.95}),
    ("convnext", "ConvNext", {"size": {"shortest_edge": 384}}),
    ("bit", "Bit", {"size": EDGE, "crop_size": CROP}),
    ("levit", "Levit", {"size": {"shortest_edge": 33}, "crop_size": CROP}),
    ("clip", "CLIP", {"size": EDGE, "crop_size": CROP, "image_mean": [0.1, 0.2, 0.3]}),
    ("siglip", "Siglip", {"size": SQUARE}),
    ("mobilenet_v1", "MobileNetV1", {"size": EDGE, "crop_size": CROP}),
    ("mobilenet_v2", "MobileNetV2", {"size": EDGE, "crop_size": {"height": 56, "width": 48}}),
    ("efficientnet", "EfficientNet", {"size": SQUARE, "rescale_offset": True}),
    ("efficientnet", "EfficientNet", {"size": SQUARE, "include_top": False, "image_std": [0.2, 0.3, 0.4]}),
    ("mobilevit", "MobileViT", {"size": EDGE, "crop_size": CROP}),
    ("poolformer", "PoolFormer", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
    ("beit", "Beit", {"size": SQUARE, "do_center_crop": True, "crop_size": CROP}),
    ("chameleon", "Chameleon", {"size": EDGE, "crop_size": CROP}),
]


@pytest.mark.parametrize(("module", "name", "settings"), PROCESSORS)
def test_a_device_follows_a_processor(module: str, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Resized, cropped, scaled and normalized alike, on images that the search for the settings did not use."""
    made = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(made, f"{name}ImageProcessorPil")(**settings)
    assert _same(_spec(processor, tmp_path), processor)


REFUSED = [
    ("mobilenet_v2", "MobileNetV2", {"size": EDGE, "do_center_crop": False}, "different sizes"),
    ("vit", "ViT", {"do_resize": False}, "different sizes"),
    ("vit", "ViT", {"size": {"shortest_edge": 20, "longest_edge": 40}}, "different sizes"),
    ("vit", "ViT", {"size": SQUARE, "image_mean": [0.5]}, "cannot process an image"),
    ("perceiver", "Perceiver", {"size": SQUARE, "crop_size": CROP}, "do not describe"),
    ("superpoint", "SuperPoint", {"size": SQUARE, "do_grayscale": True}, "do not describe"),
]


@pytest.mark.parametrize(("module", "name", "settings", "why"), REFUSED)
def test_what_a_device_cannot_follow_is_refused(
    module: str, name: str, settings: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """The error names the class, its fields, and the unsupported operation."""
    made = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    with pytest.raises(UnusableImageProcessor, match=why) as caught:
        _spec(getattr(made, f"{name}ImageProcessorPil")(**settings), tmp_path)
    assert f"{name}ImageProcessor: " in str(caught.value.context) and "do_resize=" in str(caught.value.context)


def test_images_of_one_channel_have_one_mean(tmp_path: Path) -> None:
    """The configuration says how many channels there are."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size=SQUARE, image_mean=[0.3], image_std=[0.2])
    assert _same(_spec(processor, tmp_path, num_channels=1), processor, "L")


@pytest.mark.slow
def test_every_processor_is_followed_or_refused(tmp_path: Path) -> None:
    """Of all classes that transformers has for Pillow, at least the twenty-five of classifiers."""
    followed = []
    for module in pkgutil.iter_modules(transformers.models.__path__):
        folder = Path(str(transformers.models.__path__[0])) / module.name
        for file in folder.glob("image_processing_pil_*.py"):
            made = importlib.import_module(f"transformers.models.{module.name}.{file.stem}")
            for name in [name for name in made.__all__ if name.endswith("ImageProcessorPil")]:
                processor = getattr(made, name)()
                try:
                    spec = _spec(processor, tmp_path)
                except UnusableImageProcessor:
                    continue
                assert _same(spec, processor), name
                followed.append(name)
    assert len(followed) >= 25


# In a model directory


def test_a_size_that_no_file_gives_is_the_models(tmp_path: Path) -> None:
    """Without a file one line says what is assumed; a file without a size leaves it to the model."""
    tiny_vit().save_pretrained(tmp_path)
    with pytest.warns(EdgepeftWarning, match="resized to 16 x 16, with mean and deviation 0.5"):
        plain = load_source(tmp_path).image
    assert plain == ImageSpec("pixel_values", (16, 16), 3, (0.5,) * 3, (0.5,) * 3)
    (tmp_path / FILE).write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    fitted = load_source(tmp_path).image
    assert fitted is not None and fitted.size == (16, 16)
    assert (fitted.mean, fitted.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    """A transformer for 16 x 16 with a processor for 32 x 32."""
    tiny_vit().save_pretrained(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": SQUARE}))
    with pytest.raises(SourceError, match=r"does not accept images of the size[\s\S]*32"):
        load_source(tmp_path)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (None, "no image_size"),
        ({"image_processor_type": "FromTheFutureImageProcessor"}, "cannot load"),
        ({"size": {"height": 64, "width": 64}}, "ConvNextImageProcessor reads"),
        ({"size": {"shortest_edge": 64}}, (64, 64)),
    ],
)
def test_a_model_of_any_size_uses_its_processors(settings: dict[str, Any] | None, found: Any, tmp_path: Path) -> None:
    """A ResNet's configuration has no sizes: its processor must, in fields that it reads."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    if settings is not None:
        (tmp_path / FILE).write_text(json.dumps(settings))
    if isinstance(found, str):
        with pytest.raises(UnusableImageProcessor, match=found) as caught:
            load_source(tmp_path)
        assert FILE in str(caught.value)
        return
    image = load_source(tmp_path).image
    assert image is not None and (image.size, image.resize) == (found, (73,))
