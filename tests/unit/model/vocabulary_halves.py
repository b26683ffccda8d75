"""Two processes that share a vocabulary; run by test_fused.py, kept apart for a quick start.

python vocabulary_halves.py RANK FILE
"""

import sys

import torch
import torch.nn.functional as F

from dct_vl.model.fused.linear_cross_entropy import linear_cross_entropy

if __name__ == "__main__":
    rank, file = int(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (20,))
    scale = torch.rand(20)
    mine = slice(25 * rank, 25 * rank + 25)
    part = weight.detach()[mine].clone().requires_grad_()
    group = torch.distributed.group.WORLD
    got = linear_cross_entropy(hidden, part, labels, group=group, chunk=6)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad((got * scale).sum(), (hidden, part))
    theirs = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1][mine], rtol=1e-5, atol=1e-6)
    # a rank that leaves while the other still talks to it takes gloo's threads down with it
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
