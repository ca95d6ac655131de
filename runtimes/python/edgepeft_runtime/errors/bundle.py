"""Errors of bundles."""

from __future__ import annotations

from edgepeft_runtime.errors.base import BundleError


class NoBundle(BundleError, code="no-bundle"):
    """There is no bundle at the path. Check the path."""


class BadManifest(BundleError, code="bad-manifest"):
    """manifest.json does not conform to the SPEC. Prepare the bundle again, or copy it again if it was edited."""

    def __init__(self, message: str, context: str) -> None:
        hint = "prepare the bundle again, or copy it again if it was edited."
        super().__init__(message, context=context, hint=hint)


class UnknownBundleVersion(BundleError, code="bundle-version"):
    """The bundle is of another format version than the runtime. Update edgepeft, or prepare the bundle again."""


class OnnxruntimeTooOld(BundleError, code="onnxruntime-too-old"):
    """The bundle needs a newer onnxruntime. Update it, or prepare the bundle for an older one."""


class MissingFile(BundleError, code="missing-file"):
    """The bundle lacks a file that it needs or that its manifest lists. Copy the bundle again."""


class DamagedFile(BundleError, code="damaged-file"):
    """The size or the hash of a file is not the one in the manifest. Copy the bundle again."""


class UndeclaredFile(BundleError, code="undeclared-file"):
    """The bundle has files that its manifest does not list. Remove them."""


class PathEscape(BundleError, code="path-escape"):
    """The manifest or a graph names a file outside the bundle. Do not use this bundle."""


class BadGraph(BundleError, code="bad-graph"):
    """A graph is not an ONNX model of the form that bundles have. Prepare the bundle again."""


class BadProgram(BundleError, code="bad-program"):
    """A program of the bundle does not fit its graphs. Prepare the bundle again, or copy it again if it was edited."""

    def __init__(self, message: str, context: str) -> None:
        hint = "prepare the bundle again, or copy it again if it was edited."
        super().__init__(message, context=context, hint=hint)


class UnboundedLoop(BundleError, code="unbounded-loop"):
    """A graph has a Loop without a limit, so it may never end. Give it a constant trip count."""


class GraphNotLoaded(BundleError, code="graph-not-loaded"):
    """ONNX Runtime cannot load a graph of the bundle. Prepare the bundle for this version of it."""


class NoOfficialArtifacts(BundleError, code="no-official-artifacts"):
    """The bundle has no artifacts of ONNX Runtime Training. Run `edgepeft export-ort-training`."""


class NoMemoryFacts(BundleError, code="no-memory-facts"):
    """The bundle does not say how much memory its activations take. Prepare it again."""


class WrongSizes(BundleError, code="wrong-sizes"):
    """The sizes given for symbolic dimensions do not fit the bundle. Give one size for each, within its limit."""


class StepFailed(BundleError, code="step-failed"):
    """A step on generated data failed, so its memory cannot be measured."""


class TaskExists(BundleError, code="task-exists"):
    """There is a task of this name already. Choose another name."""


class NoSuchTask(BundleError, code="no-such-task"):
    """No task of this name was added. Add it first."""
