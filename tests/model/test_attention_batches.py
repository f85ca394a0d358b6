"""Short documents in batches of similar length attend as one after another."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import Batches, Documents, full_attention

lengths = st.lists(st.one_of(st.integers(1, 9), st.integers(60, 70), st.integers(255, 260)), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(lengths=lengths, rows=st.integers(1, 2))
def test_batches_are_the_loop_over_documents(lengths, rows):
    generator = torch.Generator().manual_seed(len(lengths))
    first = torch.zeros(rows, sum(lengths), dtype=torch.bool)
    for number in range(rows):
        order = lengths[::-1] if number else lengths
        first[number, [sum(order[:place]) for place in range(len(order))]] = True
    spans = Documents(first).spans()
    shape = (rows, sum(lengths), 4, 8)
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2)[:, :heads] for heads in (4, 2, 2))
    given_ = [x.clone().requires_grad_() for x in (q, k, v)]
    together = Batches(spans, sum(lengths), torch.device("cpu"))(full_attention, *given_)
    each = [x.clone().requires_grad_() for x in (q, k, v)]
    pieces = [
        [full_attention(*(x[row : row + 1, :, begin:end] for x in each)) for at, begin, end in spans if at == row]
        for row in range(rows)
    ]
    direct = torch.cat([torch.cat(some, 2) for some in pieces])
    torch.testing.assert_close(together, direct)
    weight = torch.randn(direct.shape, generator=generator)
    (together * weight).sum().backward()
    (direct * weight).sum().backward()
    for one, other in zip(given_, each, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
