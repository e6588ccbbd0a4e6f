"""Bytes in, bytes out: the formats on the wire, without I/O and safe at any cut."""
