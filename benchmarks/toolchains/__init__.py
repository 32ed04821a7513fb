"""What NPU toolchains do with a norm in each of its dialects: see ``__main__``."""
