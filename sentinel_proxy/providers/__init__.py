"""One file a provider: what to send to it, how to read its answers. No I/O in here."""
