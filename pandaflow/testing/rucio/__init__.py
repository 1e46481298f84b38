"""A real Rucio server for tests, with storage elements on this machine."""
