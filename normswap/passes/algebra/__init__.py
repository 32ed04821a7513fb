"""The fold algebra: how a linear map on channels moves through a graph, and what absorbs it.

``rules.py`` is the table of what it does at each operator, ``spread.py`` what walks by that table.
"""
