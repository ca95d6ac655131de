"""Methods: each marks or adds what may train. One small file per family."""

from edgepeft.methods.base import Method, MethodError, attach, by_name
from edgepeft.methods.freeze import Freeze
from edgepeft.methods.lora import Lora
from edgepeft.methods.select import BitFit, Full, Head
from edgepeft.methods.sift import Sift

__all__ = ["BitFit", "Freeze", "Full", "Head", "Lora", "Method", "MethodError", "Sift", "attach", "by_name"]
