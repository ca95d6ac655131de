"""Fleets on Flower: ``client`` for the devices, ``strategy`` for the server, ``messages`` between them.

Nothing is imported here, so that a device does not load the server's libraries.
"""
