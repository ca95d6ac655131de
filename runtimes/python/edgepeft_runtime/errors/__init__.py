"""Errors that a user can meet: each says what happened, where, and what to do about it.

``EdgepeftError`` is the base of all. A family, such as ``UpdateError``, is for ``except``; a cause is a class
with a code. ``docs/ERRORS.md`` lists them.
"""

from edgepeft_runtime.errors.base import *  # noqa: F403
from edgepeft_runtime.errors.bundle import *  # noqa: F403
from edgepeft_runtime.errors.data import *  # noqa: F403
from edgepeft_runtime.errors.files import *  # noqa: F403
from edgepeft_runtime.errors.fleet import *  # noqa: F403
from edgepeft_runtime.errors.training import *  # noqa: F403
