"""From a model to a bundle: ``edgepeft.prepare`` and its steps."""
