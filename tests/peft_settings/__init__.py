"""Adapters of ``peft`` in many settings: prepared, trained and compared with peft's own losses."""
