"""What methods are made of: layers, and what is asked of a model. Unlike the methods themselves, it imports torch."""
