"""Load raw data, on a device: ``.npz``, tables of texts or numbers, folders of images by class, rows in memory.

Needs numpy; ``tokenizers`` only for text (``edgepeft[text]``), ``PIL`` only for images (``edgepeft[images]``).
"""

from edgepeft.data.loading import load
from edgepeft.data.parts import Rows, split
from edgepeft.data.tables.numbers import standardization

__all__ = ["Rows", "load", "split", "standardization"]
