"""``normswap demo``: inspect, swap, fold and validate two small trained models."""
