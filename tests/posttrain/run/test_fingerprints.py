"""Is it the same run? Fingerprints by hand, and what two configs may differ in."""

import torch
from torch import nn

from posttrain.run import fingerprints
from posttrain.tokens.batch import Example
from posttrain.tokens.examples import Pair, Prompt


def test_fingerprints():
    """Bit patterns times their places, added up: 1.0 is 0x3F800000 = 1065353216, 2.0 is 0x40000000 = 1073741824."""
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[1.0, 2.0]])
    expected = fingerprints.hashlib.blake2b(f"weight (1, 2) [{1065353216 + 2 * 1073741824}]\n".encode(), digest_size=8)
    assert fingerprints.fingerprint(module) == expected.hexdigest()
    module.weight.data[0, 1] = 2.0000002384185791  # the next number float32 has
    assert fingerprints.fingerprint(module) != expected.hexdigest()
    module.weight.data = torch.tensor([[2.0, 1.0]])  # the same numbers in other places
    assert fingerprints.fingerprint(module) != expected.hexdigest()
    a, b = Example([1, 2, 3], [False, True, True]), Example([1, 2, 3], [False, False, True])
    of = fingerprints.fingerprint_of_rows
    assert of([a, a]) == of([a, Example([1, 2, 3], [False, True, True])])
    assert len({of([a]), of([b]), of([a, b]), of([b, a]), of([Pair(a, b)]), of([Prompt([1], {"answer": "2"})]), of([Prompt([1], {"answer": "3"})])}) == 7  # fmt: skip
