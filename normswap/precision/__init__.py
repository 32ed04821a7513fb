"""What floating-point formats hold, and models in them."""
