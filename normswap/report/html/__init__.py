"""A validation as one HTML file that needs nothing else: no script, no font, no network.

``page`` makes the file; each other module makes some of its sections.
"""
