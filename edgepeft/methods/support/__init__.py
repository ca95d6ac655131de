"""Layers and queries on models that methods use. Unlike the methods themselves, these modules import torch."""
