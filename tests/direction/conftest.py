"""The planted models of the room `direction`."""

from planted_choice import blank, one_direction, two_directions

__all__ = ["blank", "one_direction", "two_directions"]
