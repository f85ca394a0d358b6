"""The factory: recipes in, dataset shards out."""

__version__ = "0.1.0"
