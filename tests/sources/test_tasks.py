"""The task of a directory: by its class, by its files, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgepeft.sources.directories.heads import with_head
from edgepeft.sources.directories.loading import notice_left_out
from edgepeft.sources.directories.recognition import task_of
from edgepeft.sources.directories.sentence_transformers import Pooling, pooling_of
from edgepeft.sources.errors import SourceDoesNotLoad, TaskNotSupported
from edgepeft.sources.model_files import ModelFiles
from edgepeft_runtime.notices import EdgepeftWarning

TASKS = {
    "BartForConditionalGeneration": "seq2seq-lm",
    "BertForMaskedLM": "masked-lm",
    "BertForQuestionAnswering": "question-answering",
    "CLIPModel": "image-text",
    "MyOwnForTokenClassification": "token-classification",
    "PatchTSTForPrediction": "time-series-prediction",
    "SegformerForSemanticSegmentation": "semantic-segmentation",
    "Wav2Vec2ForCTC": "speech-recognition",
    "Wav2Vec2ForSequenceClassification": "audio-classification",
    "WhisperForConditionalGeneration": "speech-seq2seq",
}


def _directory(folder: Path, name: str) -> ModelFiles:
    (folder / "config.json").write_text(json.dumps({"architectures": [name]}))
    return ModelFiles(folder)


@pytest.mark.parametrize(("name", "task"), TASKS.items())
def test_a_class_names_its_task(name: str, task: str, tmp_path: Path) -> None:
    """transformers' own lists decide; a class of one's own is known by the ending of its name."""
    assert task_of(_directory(tmp_path, name), None).name == task


def test_detection_is_refused_with_the_reason(tmp_path: Path) -> None:
    """In one sentence, with a way out."""
    with pytest.raises(TaskNotSupported, match="object-detection cannot be prepared: their loss matches") as failure:
        task_of(_directory(tmp_path, "DetrForObjectDetection"), None)
    assert "loss=function" in str(failure.value.hint)


def test_terms_of_transformers_loss_that_are_left_out_are_said() -> None:
    """An auxiliary head, and the balance of experts; without these there is no line."""
    from transformers import BeitConfig, MixtralConfig

    configs = [
        BeitConfig(use_auxiliary_head=True),
        MixtralConfig(output_router_logits=True),
        BeitConfig(use_auxiliary_head=True, auxiliary_loss_weight=0.0),
        MixtralConfig(),
    ]
    with pytest.warns(EdgepeftWarning) as said:
        [notice_left_out("a model", config) for config in configs]
    assert [str(each.message).partition("also adds that of the ")[2] for each in said] == [
        "auxiliary head.",
        "router's balance.",
    ]


def test_the_modules_of_a_sentence_encoder_are_read(tmp_path: Path) -> None:
    """Pooling and normalization are those of the directory; a module that is not known is refused."""
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert task_of(_directory(tmp_path, "BertModel"), None).name == "sentence-similarity"
    assert pooling_of(tmp_path) == Pooling("cls", True)
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(SourceDoesNotLoad, match="sentence encoder") as failure:
        pooling_of(tmp_path)
    assert "Dense" in str(failure.value.context)


def test_scores_at_the_end_of_a_text_are_those_of_transformers(tmp_path: Path) -> None:
    """Of an encoder and a decoder, where the texts of a batch end at different tokens; others stay as they are."""
    from transformers import T5Config, T5ForSequenceClassification

    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "num_labels": 3}
    torch.manual_seed(0)
    model = T5ForSequenceClassification(T5Config(**sizes, decoder_start_token_id=0, eos_token_id=1)).eval()
    ids = torch.tensor([[5, 6, 1, 0], [7, 8, 9, 1]])
    fed = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    with torch.no_grad():
        expected = model(**fed).logits
        found = with_head(model, "LastEnd", tmp_path)(**fed)["logits"]
    assert torch.allclose(found, expected, atol=1e-6)
    inner = model.transformer
    assert with_head(inner, "LastEnd", tmp_path) is inner and "LastEnd" not in str(type(inner).__mro__)
