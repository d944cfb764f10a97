"""What a search finds: the chosen operations of each cell, as JSON and in the field's published forms."""

from oche.genotype.cells import FREE, SCHEMA, Genotype
from oche.genotype.forms import Choice
from oche.genotype.zoo import published

__all__ = ["FREE", "SCHEMA", "Choice", "Genotype", "published"]
