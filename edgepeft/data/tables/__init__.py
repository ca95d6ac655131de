"""Tables of numbers, ``.parquet`` files, and weights of examples."""
