"""``compare``: LayerNorm against BatchNorm, trained from the same weights."""
