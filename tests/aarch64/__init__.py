"""The device runtime on aarch64, as a Raspberry Pi has it: ``python -m tests.aarch64`` prints how near it comes."""
