"""The drop-in on models of other images than RGB, as its originals take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import finercam_rt.compat as ours
from finercam_rt.compat import torchcam
from finercam_rt.errors import InputError

from .conftest import SIZE, small_cnn

SAME = 1e-4


def cnn_of(channels: int) -> nn.Sequential:
    model = small_cnn()
    model[0] = nn.Conv2d(channels, 24, 8, 8).eval()
    return model


def blobs_of(channels: int) -> torch.Tensor:
    values = torch.randn(4, channels, 5, 5, generator=torch.Generator().manual_seed(3))
    return 2 * nn.functional.interpolate(values, SIZE, mode="bicubic")


@pytest.mark.filterwarnings("ignore:the map explains nothing")
def test_finer_cam_of_one_channel() -> None:
    public: Any = pytest.importorskip("pytorch_grad_cam", reason="grad-cam, the library compared with")
    model, images = cnn_of(1), blobs_of(1)
    with ours.FinerCAM(model=model, target_layers=[model[1]]) as mine, public.FinerCAM(model, [model[1]]) as theirs:
        got, expected = mine(input_tensor=images), theirs(input_tensor=images)
    assert (expected.max(axis=(1, 2)) > 0.9).mean() >= 0.5
    np.testing.assert_allclose(got, expected, rtol=0, atol=SAME)


@pytest.mark.filterwarnings("ignore:the map explains nothing")
def test_against_autograd_in_both_forms() -> None:
    """Of four channels, by hand: what needs no other library."""
    model, images = cnn_of(4), blobs_of(4)
    activations = model[1](model[0](images)).detach().requires_grad_()
    logits = model[4](activations.mean((2, 3)))
    (gradients,) = torch.autograd.grad(logits[:, 2].sum(), activations)
    raw = (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu().detach()
    expected = raw - raw.amin((1, 2), keepdim=True)
    expected /= expected.amax((1, 2), keepdim=True) + 1e-8
    assert (raw.amax((1, 2)) > 0).sum() >= 2
    extractor = torchcam.GradCAM(model, "1", input_shape=(4, *SIZE))
    (got,) = extractor(class_idx=2, scores=model(images))
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=SAME)
    assert torchcam.GradCAM(model, input_shape=(4, *SIZE)).target_names, "a layer is chosen on four channels"


def test_images_that_the_model_does_not_take() -> None:
    model = cnn_of(1)
    with ours.GradCAM(model=model, target_layers=[model[1]]) as cam:
        with pytest.raises(InputError, match=r"does not run on images of 32x48 and 3 channels \(.*\); give those that"):
            cam(input_tensor=torch.zeros(1, 3, *SIZE))
        with pytest.raises(InputError, match=r"shape \(1, 32, 48\); engines take images \(N,C,H,W\)"):
            cam(input_tensor=torch.zeros(1, *SIZE))
