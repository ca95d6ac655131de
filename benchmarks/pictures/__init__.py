"""Pictures and pages of what the benches have measured."""
