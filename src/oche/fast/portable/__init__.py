"""Cells in plain PyTorch operators that share and fuse work."""
