"""Readers: from files to arrays, one reader for each layout."""
