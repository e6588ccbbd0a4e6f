"""Sockets to providers. `base` is the seam; each transport behind it is one file."""
