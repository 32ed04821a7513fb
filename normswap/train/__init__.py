"""Training: distillation of a swapped model from its original, and the comparison of norms."""
