"""What users read: tables for the terminal, documents for ``--json``, progress."""
