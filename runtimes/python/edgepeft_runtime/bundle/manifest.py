"""The manifest of a bundle: everything a runtime needs to know (section 2 of the SPEC)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.bundle.manifest_checks import check
from edgepeft_runtime.bundle.specs import LabelSpec, Parts, TensorSpec
from edgepeft_runtime.errors import BadManifest, UnknownBundleVersion
from edgepeft_runtime.figures import size
from edgepeft_runtime.files import strict_json
from edgepeft_runtime.files.schema import BadFields, Json, Mark, read, write
from edgepeft_runtime.shown import quoted
from edgepeft_runtime.tables import html_facts

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**23
FORMAT = "edgepeft-bundle"
VERSION = 2


@dataclass(frozen=True)
class Manifest(Parts):
    """A whole manifest. Creating one with inconsistent parts raises ``BundleError``."""

    def __post_init__(self) -> None:
        check(self)

    def _repr_html_(self) -> str:
        """Inputs, trained elements and loss."""
        return html_facts("manifest", self.facts())

    def facts(self) -> dict[str, str]:
        """Return the main facts in words, for people."""
        elements = sum(spec.size for spec in self.trained)
        tensors = {"inputs": self.inputs, "labels": self.labels, "outputs": self.outputs}
        described = {name: ", ".join(_described(spec) for spec in specs) for name, specs in tensors.items()}
        return {
            "method": str(self.provenance.get("method", "")),
            **described,
            "classes": ", ".join(self.classes or ()),
            "loss": self.loss.kind,
            "optimizer": f"{self.optimizer.kind}, lr {self.optimizer.lr:g}",
            "trains": f"{elements:,} elements in {len(self.trained)} tensors",
            "frozen": size(sum(spec.bytes for spec in self.stored)),
            "onnxruntime": f">= {self.min_onnxruntime}",
        }

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest from the text of ``manifest.json``."""
        try:
            value = strict_json.loads(text)
        except ValueError as failure:
            raise BadManifest(f"{MANIFEST} is not JSON.", str(failure)) from None
        return cls.from_dict(value)

    def to_json(self) -> str:
        """Return the text of ``manifest.json``, from which ``from_json`` reads an equal manifest."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Read a manifest from plain JSON values."""
        try:
            document = read(_Document, value, MANIFEST)
            _check_format(document)
            return read(cls, document.content, MANIFEST)
        except BadFields as wrong:
            raise BadManifest(wrong.message, wrong.context) from None

    def to_dict(self) -> Json:
        """Return the manifest as plain JSON values, in the order of the SPEC."""
        return {"format": FORMAT, "version": VERSION, **write(self)}


def _described(spec: TensorSpec | LabelSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


@dataclass(frozen=True)
class _Document:
    format: str
    version: int
    content: Annotated[Json, Mark.REST]


def _check_format(document: _Document) -> None:
    if document.format != FORMAT:
        context = f"format: expected {FORMAT!r}, found {quoted(document.format)}"
        raise BadManifest("This directory contains no edgepeft bundle.", context)
    if document.version != VERSION:
        raise UnknownBundleVersion(
            f"The bundle is of version {document.version}; this runtime knows version {VERSION}.",
            context=f"{MANIFEST}: version",
            hint="update edgepeft on this machine, or prepare the bundle with the edgepeft that this machine has.",
        )
