"""Instructions that a program can verify: the kinds, whether a response follows them, and those that a model writes."""

from factory.verify.instructions import content, form, more
from factory.verify.instructions.follow import follows, variants, verdicts
from factory.verify.instructions.generated import accepted
from factory.verify.instructions.kind import Kind, describe, draw, instruction, kind, kinds

__all__ = ["Kind", "accepted", "content", "describe", "draw", "follows", "form", "instruction"]
__all__ += ["kind", "kinds", "more", "variants", "verdicts"]

LIBRARIES = ("langdetect",)
KEPT = ("accepted",)
