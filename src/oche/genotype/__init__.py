"""What a search finds: the chosen operations of each cell, as JSON and in the field's published forms."""

from oche.genotype.cells import FREE, PUBLISHED, SCHEMA, Choice, Genotype

__all__ = ["FREE", "PUBLISHED", "SCHEMA", "Choice", "Genotype"]
