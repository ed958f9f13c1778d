"""What we do to a model while it runs."""

MODES = ("mean", "zero", "resample")
"""What an ablated unit is replaced by."""
