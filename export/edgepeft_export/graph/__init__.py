"""The toolbox for graphs: edits, linear layers, constants, shapes, new nodes."""
