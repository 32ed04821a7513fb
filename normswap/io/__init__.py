"""Reading and writing models, one file per format or source."""
