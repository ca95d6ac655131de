"""Where the time and the memory of a training step go: by operator, by layer and by call of a graph.

The figures are those of onnxruntime's own profiler. :mod:`record` takes the steps, :mod:`events` reads the profiler's
files, :mod:`layers` names what a node belongs to, :mod:`summary` adds up, :mod:`advice` derives what would help, and
:mod:`text` and :mod:`page` show it.
"""
