"""A device in a fleet: it joins the host's rounds and delivers its updates (section 8 of the SPEC).

``rounds``, ``delivery``, ``identity`` and ``signatures`` are the data, which the host reads and writes too.
``trust`` decides which data a device accepts. ``joining`` and ``delivering`` do the reading and writing, through
``transports`` and into the ``device_directory``. Standard library and numpy.
"""
