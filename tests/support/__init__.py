"""What the tests themselves stand on, and tests of it."""
