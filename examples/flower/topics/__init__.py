"""The two halves of a Flower app: the devices' and the server's."""
