"""Rules that decide by simple statistics of the text whether a document is worth keeping."""

from factory.corpus.quality.c4 import C4
from factory.corpus.quality.fineweb import FineWeb
from factory.corpus.quality.gopher import Gopher
from factory.corpus.quality.repetition import GopherRepetition

__all__ = ["C4", "FineWeb", "Gopher", "GopherRepetition"]
