"""The spellings of LayerNorm and RMSNorm that targets ask for, a file each; all exact."""
