"""Classes of transformers by directory: prepared, trained and merged, and compared with transformers' own losses."""
