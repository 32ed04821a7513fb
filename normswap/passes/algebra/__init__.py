"""The fold algebra: how an affine map moves through a graph. ``change_of_variables.py`` has the
rules, ``moves.py`` those of operators that move or copy values.
"""
