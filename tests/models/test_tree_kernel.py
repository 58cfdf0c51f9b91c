"""The attention of a search tree in one kernel is that over gathered keys and values."""

from __future__ import annotations

import os

import pytest
import torch

from jowa.models.tree_decoding import Past, _attention

pytest.importorskip("triton")
interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # how to run this without a GPU
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not interpreted, reason="needs a GPU"
)
DEVICE = "cpu" if interpreted else "cuda"


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("heads", "width"), [(2, 128), (1, 32), (3, 72)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
def test_attention_in_place_is_that_over_what_is_gathered(
    depth: int, heads: int, width: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Contexts of other lengths than whole tiles, one of a single token; nodes in no order."""
    from jowa.models.tree_kernel import tree_attention

    if interpreted and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes other numbers in bfloat16")
    B, P, C, K, rows = 4, 150, 9, 37, 20
    generator = torch.Generator().manual_seed(depth)

    def numbers(*shape: int) -> torch.Tensor:
        return (2 * torch.randn(*shape, generator=generator)).to(DEVICE, dtype)

    def indices(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator).to(DEVICE)

    qkv, known = numbers(C, K, 3 * width), torch.tensor([150, 1, 64, 65], device=DEVICE)
    contexts, blocks = [numbers(B, P, 2 * width)], [numbers(rows, K, 2 * width)]
    contexts[0][1, 1:] = torch.nan  # behind what is known
    past = Past(contexts, known, indices(B, C), blocks, indices(rows, depth, C))
    found = tree_attention(
        qkv, heads, contexts[0], known, past.environments, blocks[0], past.ancestors
    )
    contexts[0].nan_to_num_()  # a masked NaN is one all the same in PyTorch
    keys, mask = past.gather(0, qkv[..., width:]), past.mask(K, dtype)
    expected = _attention(qkv[..., :width], keys, heads, mask)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
