"""Choosing between forms of an operator by measuring them on this machine."""
