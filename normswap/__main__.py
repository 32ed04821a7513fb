"""``python -m normswap``: the command ``normswap``."""

from normswap_cli.main import program

if __name__ == "__main__":
    program()
