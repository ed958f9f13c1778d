"""The planted models of the room `direction`."""

from planted_choice import blank, one_direction

__all__ = ["blank", "one_direction"]
