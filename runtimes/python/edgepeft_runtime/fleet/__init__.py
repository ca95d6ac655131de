"""A device in a fleet: it joins the host's rounds and delivers its updates (section 8 of the SPEC).

``rounds``, ``delivery``, ``identity``, ``signatures`` are the data, read and written by the host through the same code;
``places``, ``slots``, ``joining`` and ``delivering`` are what a device does with it. Standard library and numpy.
"""
