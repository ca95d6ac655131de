"""The node tests of ONNX's backend suite as an oracle of gradients; ``python -m tests.node_tests`` runs them all."""
