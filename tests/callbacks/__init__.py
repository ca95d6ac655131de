"""Tests of the callbacks that need further packages."""
