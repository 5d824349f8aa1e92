"""Policies whose width is one of their own fields."""

from typing import ClassVar

from cdserve.policy import FIELD, Limits, Policy, at_most


class WidthField(Policy):
    """Base of policies whose width is their ``width_field``, up to the limit ``width_limit``."""

    width_field: ClassVar[str]
    width_limit: ClassVar[str]

    @property
    def width(self) -> int:
        width: int = getattr(self, self.width_field)
        return width

    def check_limits(self, limits: Limits) -> None:
        at_most(f"{FIELD}.{self.width_field}", self.width, getattr(limits, self.width_limit))
