"""Helpers of the tests, and tests of them."""
