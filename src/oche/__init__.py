"""Differentiable neural architecture search that does not collapse."""
