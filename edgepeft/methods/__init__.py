"""Methods: each marks or adds what may train. One small file per family."""

from edgepeft.methods.base import Method, MethodError, attach, by_name
from edgepeft.methods.lora import Lora
from edgepeft.methods.select import BitFit, Freeze, Full, Head

__all__ = ["BitFit", "Freeze", "Full", "Head", "Lora", "Method", "MethodError", "attach", "by_name"]
