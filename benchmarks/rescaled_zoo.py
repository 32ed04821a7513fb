"""What ``rescale`` does with every architecture of the tests, and why norms stay as they are.

    python -m benchmarks.rescaled_zoo [--forms FORM ...]

in the repository's root, with the extras ``test`` and ``zoo``. Headroom of 15 binary places, so
that nothing may be larger than 2: these small models hold no large values. That the results are the
same to the bit is tested in ``tests/passes/test_rescale_zoo.py``.
"""

from __future__ import annotations

import argparse
from collections import Counter

import normswap as ns
from tests.passes.rescale_checks import as_data
from tests.zoo.exports import FORMATS, NotExportable, model_as, zoo_model
from tests.zoo.models import FAMILIES

HEADROOM = 15


def row(name: str, form: str) -> str:
    """A line of the table in Markdown."""
    try:
        model = model_as(name, form)
    except NotExportable:
        return f"| {name} | {form} | torch cannot export it | | |"
    arrays = [tensor.numpy() for tensor in zoo_model(name).inputs.values()]
    given = zip(model.inputs, arrays, strict=True)
    data = as_data({spec.name: array.astype(spec.dtype) for spec, array in given})
    result = ns.swap(model, ns.Rescale(headroom=HEADROOM), data=data)
    reasons = Counter(reason for _, reason in result.skipped)
    told = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
    stays = sum("it stays" in note for note in result.notes)
    return f"| {name} | {form} | {len(result.done)} | {stays} | {told} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    default = ["torchscript-14", "dynamo-18"]
    parser.add_argument("--forms", nargs="+", choices=FORMATS, default=default, metavar="FORM")
    options = parser.parse_args()
    print("| model | form | norms done | other values that stay | norms left, and why |")
    print("|---|---|---|---|---|")
    for name in FAMILIES:
        for form in options.forms:
            print(row(name, form), flush=True)


if __name__ == "__main__":
    main()
