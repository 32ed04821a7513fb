"""Statistics and fits from calibration data."""
