"""Backends: the compiled library and Triton."""
