"""Whether a rewritten model still is the original, and how far off it is."""
