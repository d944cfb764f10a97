"""Cells in compiled kernels."""
