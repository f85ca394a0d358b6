"""A small checkpoint, made once."""

from tests.teacher.conftest import checkpoint

__all__ = ["checkpoint"]
