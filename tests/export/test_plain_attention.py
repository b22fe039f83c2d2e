"""nn.MultiheadAttention as it is captured equals itself, and is itself again afterwards."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the export needs PyTorch")

from finercam_rt.export.plain_attention import plain_attention  # noqa: E402


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [None, "float", "bool"])
@pytest.mark.parametrize("cross", [False, True])
def test_the_same_values(batch_first: bool, bias: bool, mask: str | None, cross: bool) -> None:
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).double().eval()
    x, y = torch.randn(2, 5, 12).double(), torch.randn(2, 7, 12).double()
    x, y = (x, y) if batch_first else (x.transpose(0, 1), y.transpose(0, 1))
    key = y if cross else x
    hidden = torch.rand(5, 7 if cross else 5) > 0.7
    hidden[:, 0] = False
    given = None if mask is None else hidden if mask == "bool" else torch.zeros(hidden.shape).double() - 2.0 * hidden
    for weights in (False, True):
        want = module(x, key, key, need_weights=weights, attn_mask=given)
        with plain_attention(module):
            got = module(x, key, key, need_weights=weights, attn_mask=given)
            assert "forward" in vars(module)
        torch.testing.assert_close(got[0], want[0])
        assert (got[1] is None) == (not weights)
    assert "forward" not in vars(module)
