"""Where the time and the memory of a training step go: by operator, by layer and by call of a graph.

The figures are those of onnxruntime's own profiler. ``record`` takes the steps, ``events`` reads the profiler's
files, ``layers`` names what a node belongs to, ``summary`` adds up, ``advice`` derives what would help, and
``text`` and ``page`` show it.
"""
