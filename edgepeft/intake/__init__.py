"""What all ways of receiving updates share: the checks, in one order and without I/O, and the record of a refusal."""
