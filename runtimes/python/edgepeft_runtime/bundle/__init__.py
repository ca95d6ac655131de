"""Bundles: the manifest, its checks, and the files beside it."""
