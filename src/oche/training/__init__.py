"""Training a network from scratch, scoring it, comparing it, exporting it: knows nothing of search."""
