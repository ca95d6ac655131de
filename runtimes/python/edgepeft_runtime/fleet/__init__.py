"""A device in a fleet: it joins the host's rounds and delivers its updates (section 8 of the SPEC).

``rounds``, ``delivery``, ``identity`` and ``signatures`` are the data, which the host reads and writes alike.
``trust`` says what a device accepts; ``joining`` and ``delivering`` are the reads and writes around it, through
``transports`` and into the ``device_directory``. Standard library and numpy.
"""
