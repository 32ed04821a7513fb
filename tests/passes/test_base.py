"""How passes are found."""

from __future__ import annotations

from normswap.passes import swap_called, swaps


def test_the_word_of_a_swap_names_its_file() -> None:
    known = swaps()
    assert set(known) == {"fused", "rmsnorm", "batchnorm", "affine"}
    for word, kind in known.items():
        assert swap_called(word) is kind
    for word in ("", "fold", "ensure", "nonsense", "rms_norm"):  # files that are no swap, no file
        assert swap_called(word) is None
