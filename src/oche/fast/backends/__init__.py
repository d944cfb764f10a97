"""Where kernels come from: compiled libraries and Triton."""
