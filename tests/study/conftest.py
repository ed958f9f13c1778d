"""The planted models of the room `direction`."""

from planted import blank, one_direction

__all__ = ["blank", "one_direction"]
