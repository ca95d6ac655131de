"""The comparison on language models works at a tiny size; no test looks at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import machine
from benchmarks.llm import __main__ as driver
from benchmarks.llm.making import made
from benchmarks.llm.memory import MB, Limit, Sampler, forget_files
from benchmarks.llm.page import page
from benchmarks.llm.perplexity import COMPUTES, keep, measured, missing, write_texts
from benchmarks.llm.results import compared, machine_kind, merged, ratio
from benchmarks.llm.shapes import DESCRIPTION, SHAPES, matmul_parameters, operations
from benchmarks.llm.sides import INFERENCE, TORCH
from benchmarks.llm.targets import perplexity_targets, targets_of

PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "gemma-3-270m": 268_098_176,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen3-1.7b": 1_720_574_976,
}
"""Numbers of parameters of the published checkpoints."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_are_those_of_the_published_models(name: str) -> None:
    """Each has as many parameters as the checkpoint; each side's modules are in it."""
    shape = SHAPES[name]
    with torch.device("meta"):
        config = getattr(transformers, shape.config)(**shape.sizes)
        model = transformers.AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[name]
    table = config.vocab_size * config.hidden_size
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    assert matmul_parameters(model) == count - norms, "the head is the embedding, and counts as a product"
    assert matmul_parameters(model) > table


def test_operations_of_a_matrix_are_counted() -> None:
    """A product of [5, 3] with [3, 7] has 5 x 3 x 7 multiplications and as many additions; its gradient too."""
    assert operations(3 * 7, 5, trains=False) == 2 * 5 * 3 * 7
    assert operations(3 * 7, 5, trains=True) == 2 * (2 * 5 * 3 * 7)


def test_a_tiny_case_runs_and_is_written(tmp_path: Path) -> None:
    """Model and bundle are written, a process trains, a limited one too; rows of another run are kept."""
    out, work = tmp_path / "llm.json", tmp_path / "work"
    model, folder = work / "tiny" / "model", work / "tiny" / "qv"
    folder.mkdir(parents=True)
    for kind, path in (("model", model), ("int8", folder / "edgepeft-int8")):
        record = made(kind, "tiny", "qv", model, path)
        path.with_name(f"{path.name}.json").write_text(json.dumps(record), encoding="utf-8")
    kept = {"shape": "tiny", "method": "all", "length": 32, "side": TORCH, "machine": "VNNI", "run": "1", "error": "x"}
    out.write_text(json.dumps({"rows": [kept]}), encoding="utf-8")
    arguments = f"--shapes tiny --sides edgepeft-int8 --rounds 2 --threads 1 --work {work} --out {out} --limits 1000"
    options = driver.parsed(arguments.split())
    case = driver.Case("tiny", "qv", work, options)
    for rows in case.parts():
        driver.keep(out, "tiny", rows, case.about)
    results = json.loads(out.read_text("utf-8"))
    assert not any(driver.Case("tiny", "qv", work, options).parts(results["rows"])), "all is there"
    free, limited, other = results["rows"]
    assert other == kept
    assert free["losses"] == "ok"
    figures = ("s_per_step", "first_s", "open_s", "anon_mb", "file_mb", "disk_mb", "gop_per_s")
    assert min(free[name] for name in figures) > 0
    assert limited["limit_mb"] == 1000
    assert limited.get("losses", "ok") == "ok"
    assert json.loads((model / DESCRIPTION).read_text("utf-8"))["matmul_parameters"] == case.about["matmul_parameters"]
    perplexity = {"about": "Of texts.", "rows": [{"side": "a", "before": 2.5, "machine": "VNNI"}]}
    text = page({**results, "perplexity": perplexity})
    assert "| edgepeft-int8 |" in text
    assert "Within a limit of memory" in text
    assert "| a | 2.5 |" in text


def test_a_side_that_cannot_be_made_is_a_row_with_its_error(tmp_path: Path) -> None:
    """The first sides' rows stay."""
    options = driver.parsed(f"--shapes tiny --methods qv --sides edgepeft-fp32 --work {tmp_path}".split())
    case = driver.Case("tiny", "qv", tmp_path, options)
    case.model.mkdir()
    (case.model / DESCRIPTION).write_text('{"vocabulary": 5, "matmul_parameters": 7}', encoding="utf-8")
    case.model.with_name("model.json").write_text("{}", encoding="utf-8")
    ((row,),) = case.parts()
    assert "no-model-directory" in row["error"]


def test_rows_replace_those_of_the_same_case() -> None:
    """By shape, method, length, side and limit, in the order of shapes and sides."""
    old = [{"shape": "tiny", "method": "qv", "length": 32, "side": side, "run": "1"} for side in (INFERENCE, TORCH)]
    new = [{**old[0], "run": "2"}, {**old[0], "run": "2", "limit_mb": 100}]
    assert [(row["side"], row["run"]) for row in merged(old, new)] == [(TORCH, "1"), (INFERENCE, "2"), (INFERENCE, "2")]


def test_ratios_are_of_one_run() -> None:
    """Times of different runs do not compare."""
    case = {"shape": "tiny", "method": "qv", "length": 32}
    rows = [
        {**case, "side": TORCH, "run": "1", "s_per_step": 4.0},
        {**case, "side": "edgepeft-int8", "run": "1", "s_per_step": 1.0},
        {**case, "side": "edgepeft-int4", "run": "2", "s_per_step": 1.0},
    ]
    assert [ratio(row, rows, TORCH) for row in rows] == [None, 0.25, None]


def test_bounds_are_met_missed_or_not_measured() -> None:
    """A time is compared with that of the same run alone; a missing figure is neither met nor missed."""
    case = {"shape": "qwen2.5-0.5b", "method": "qv", "length": 256, "run": "2"}
    rows = [
        {**case, "side": "edgepeft-int8", "s_per_step": 1.0, "first_s": 3.0, "anon_mb": 200.0, "disk_mb": 800.0},
        {**case, "side": "edgepeft-int4", "s_per_step": 1.4, "disk_mb": 400.0, "run": "1"},
        {**case, "side": TORCH, "s_per_step": 4.0},
        {**case, "side": TORCH, "s_per_step": 1.0, "run": "1"},
    ]
    found = {(row["target"].partition(": ")[2], row["bound"]): (row["value"], row["met"]) for row in targets_of(rows)}
    assert found["anon_mb", 250] == (200.0, True)
    assert found["s_per_step to that of torch-peft", 0.38] == (0.25, True)
    assert found["first_s to that s_per_step", 2] == (3.0, False)
    assert found["disk_mb to that of edgepeft-int8", 0.6] == (0.5, True)
    assert found["s_per_step to that of edgepeft-int8", 1.5] == (None, None)
    assert found["open_s", 0.5] == (None, None)


def test_bounds_on_perplexity_are_of_the_worst_machine() -> None:
    """Before and after training, for int8 and int4; without rows they are not measured."""
    rows = [
        {"side": "edgepeft int8", "before_ratio": 1.01, "after_ratio": 1.02},
        {"side": "edgepeft int8", "before_ratio": 1.012},
        {"side": "edgepeft fp32", "before_ratio": 1.0},
    ]
    found = [(target["value"], target["bound"], target["met"]) for target in perplexity_targets(rows)]
    assert found == [(1.012, 1.015, True), (1.02, 1.015, False), (None, 1.05, None), (None, 1.05, None)]
    assert "perplexity before training, edgepeft int4 to edgepeft fp32" in page({"rows": []})


def test_losses_start_where_those_of_pytorch_do() -> None:
    """Closely in fp32, roughly with rounded weights; they fall."""
    assert compared([6.0, 5.0], [6.002, 5.5], "edgepeft-fp32") == "ok"
    assert "6.1000" in compared([6.1, 5.0], [6.0, 5.5], "edgepeft-fp32")
    assert compared([6.1, 5.0], [6.0, 5.5], "edgepeft-int8") == "ok"
    assert "does not fall" in compared([6.0, 6.0], [6.0, 5.5], "edgepeft-int8")


def test_a_machine_is_named_by_its_integer_products() -> None:
    """VNNI is several times faster than AVX2 alone."""
    assert machine_kind({"instructions": ["avx2", "avx512f", "avx512_vnni"]}) == "VNNI"
    assert machine_kind({"instructions": ["avx2"]}) == "AVX2"
    assert machine_kind({"instructions": []}) == "scalar"


def test_peaks_are_split_into_anonymous_memory_and_files(tmp_path: Path) -> None:
    """An array counts as anonymous, a mapped file as file pages; both stay in the peak after they are gone."""
    size = 64 * MB
    path = tmp_path / "mapped"
    path.write_bytes(bytes(size))
    code = f"""
import mmap
from benchmarks.llm.memory import Sampler
sampler = Sampler(); before = (sampler.anon, sampler.file)
array = bytearray(b"x") * {size}; sampler.sample(); del array; sampler.sample()
with open({str(path)!r}, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    sum(mapped[:: 4096]); sampler.sample()
print(sampler.anon - before[0], sampler.file - before[1])
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    anon, file = (int(number) / size for number in printed.split())
    assert 0.95 < anon < 1.2
    assert 0.95 < file < 1.2
    assert Sampler().end()["anon_mb"] > 0


def test_a_process_within_a_limit_ends_when_it_needs_more(tmp_path: Path) -> None:
    """Anonymous memory beyond the limit ends it; a larger file is read within it."""
    try:
        limit = Limit(64)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    path = tmp_path / "file"
    path.write_bytes(bytes(128 * MB))
    forget_files(tmp_path)
    read = f"array = None\nwith open({str(path)!r}, 'rb') as file:\n    while file.read(2**20): pass\n"
    codes = {"reads": read, "allocates": f"array = bytearray(b'x') * {128 * MB}\n"}
    with limit:
        group = str(limit.processes)
        join = f"import os; open({group!r}, 'w').write(str(os.getpid()))\n"
        ends = {name: subprocess.run([sys.executable, "-c", join + code], check=False) for name, code in codes.items()}
    assert ends["reads"].returncode == 0
    assert ends["allocates"].returncode != 0
    assert not limit.processes.exists()


def test_perplexities_are_measured_in_parts(tmp_path: Path) -> None:
    """A row replaces that of its side and machine, and is compared with fp32 there; other texts have other rows."""
    out, rows = tmp_path / "llm.json", []
    measured_ones = (("int8", "VNNI", 9.0), ("fp32", "AVX2", 8.0), ("fp32", "VNNI", 6.0), ("int8", "VNNI", 9.6))
    for side, kind, before in measured_ones:
        rows = keep(out, "texts", {"side": f"edgepeft {side}", "machine": kind, "before": before})["rows"]
    assert [(row["before"], row["before_ratio"]) for row in rows] == [(8, 1), (6, 1), (9.6, 1.6)]
    alone = keep(out, "others", {"side": "edgepeft int8", "machine": "VNNI", "before": 9.0})
    assert alone == json.loads(out.read_text("utf-8"))["perplexity"]
    assert alone["rows"] == [{"side": "edgepeft int8", "machine": "VNNI", "before": 9.0}]
    keep(out, "others", {"side": "edgepeft fp32", "machine": machine_kind(machine.describe()), "before": 8.0})
    results = json.loads(out.read_text("utf-8"))
    assert "fp32" not in missing(COMPUTES, results, "others")
    assert missing(COMPUTES, results, "texts") == list(COMPUTES)


@pytest.mark.slow
def test_perplexity_in_fp32_is_that_of_pytorch(tmp_path: Path) -> None:
    """On texts that are cut and padded, from a .gguf file; learning others lowers it."""
    from tests.support.llamas.gguf_files import tiny_llama, write_gguf

    texts = write_texts(tmp_path, train=12, test=6)
    model = write_gguf(tiny_llama(), tmp_path / "model.gguf")
    oracle, row = measured(model, texts, ["fp32"], tmp_path)
    assert row["before"] == pytest.approx(oracle["before"], rel=1e-4)
    assert row["after"] < row["before"]
