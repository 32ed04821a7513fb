"""What a floating-point format holds, and how much of it a model uses."""
