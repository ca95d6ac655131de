"""Small projects to begin with: sample data, and scripts that prepare, train and merge."""

from edgepeft.projects.create import KINDS, create

__all__ = ["KINDS", "create"]
