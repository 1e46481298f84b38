"""Conformance kits for those who write stores and executors."""
