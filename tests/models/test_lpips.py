"""LPIPS: the formula by hand, gradients to the image only, damaged weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.errors import UserError
from jowa.models.lpips import LPIPS

FIXTURES = Path(__file__).parents[1] / "fixtures"
# VGG16 in order: the numbers of its convolutions; a pooling layer stands between the slices.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights at the real sizes, named as in the released file."""
    torch.manual_seed(0)
    sizes = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)}
    sizes |= {12: (256, 256), 14: (256, 256), 17: (512, 256)}
    sizes |= {index: (512, 512) for index in (19, 21, 24, 26, 28)}
    tensors = {}
    for number, indices in enumerate(SLICES, start=1):
        for index in indices:
            outputs, inputs = sizes[index]
            weight = torch.randn(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
            tensors[f"net.slice{number}.{index}.weight"] = weight
            tensors[f"net.slice{number}.{index}.bias"] = 0.1 * torch.randn(outputs)
        tensors[f"lin{number - 1}.model.1.weight"] = torch.rand(1, sizes[indices[-1]][0], 1, 1)
    return tensors


@pytest.fixture(scope="module")
def net(state: dict[str, Tensor]) -> LPIPS:
    return LPIPS.from_state(state)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 84, 84, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plain_distance(state: dict[str, Tensor], one: Tensor, other: Tensor) -> Tensor:
    """The formula without modules, image by image and slice by slice."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    distances = []
    for pair in zip(one, other, strict=True):
        maps = [((x.repeat(3, 1, 1) - shift) / scale).unsqueeze(0) for x in pair]
        total = torch.zeros(())
        for number, indices in enumerate(SLICES, start=1):
            unit = []
            for i in range(2):
                if number > 1:
                    maps[i] = F.max_pool2d(maps[i], kernel_size=2, stride=2)
                for index in indices:
                    name = f"net.slice{number}.{index}"
                    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
                    maps[i] = F.conv2d(maps[i], weight, bias, padding=1).clamp(min=0)
                length = (maps[i] ** 2).sum(1, keepdim=True).sqrt()
                unit.append(maps[i] / (length + 1e-10))
            counts = state[f"lin{number - 1}.model.1.weight"].view(1, -1, 1, 1)
            total = total + ((unit[0] - unit[1]) ** 2 * counts).sum(1).mean()
        distances.append(total)
    return torch.stack(distances)


def test_the_formula(net: LPIPS, state: dict[str, Tensor]) -> None:
    one, other = images(2), images(2, seed=1)
    distance = net(one, other)
    assert distance.shape == (2,) and (distance > 0.01).all()
    torch.testing.assert_close(distance, plain_distance(state, one, other), rtol=1e-4, atol=1e-6)


def test_an_image_is_no_distance_from_itself(net: LPIPS) -> None:
    one, other = images(2), images(2)
    other[1, 0, 40:44, 40:44] = 1.0
    distance = net(one, other)
    assert distance[0] == 0 and distance[1] > 1e-4


def test_only_the_image_gets_a_gradient(net: LPIPS) -> None:
    image = images(1).requires_grad_()
    net.train()
    assert not any(module.training for module in net.modules())
    net(image, images(1, seed=1)).sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())


def test_numbers_stay_finite_where_no_feature_is_active(state: dict[str, Tensor]) -> None:
    dark = LPIPS.from_state(state | {"net.slice1.2.bias": torch.full((64,), -1e3)})
    image = images(1).requires_grad_()
    distance = dark(image, images(1, seed=1))
    distance.sum().backward()
    assert distance.isfinite().all()
    assert image.grad is not None and image.grad.isfinite().all()


def test_names_may_be_prefixed_and_constants_given(net: LPIPS, state: dict[str, Tensor]) -> None:
    one, other = images(1), images(1, seed=1)
    given = {f"lpips.{name}": tensor for name, tensor in state.items()}
    given["encoder.conv_in.weight"] = torch.zeros(3)
    torch.testing.assert_close(LPIPS.from_state(given)(one, other), net(one, other))
    given["lpips.scaling_layer.scale"] = torch.ones(1, 3, 1, 1)
    assert not torch.allclose(LPIPS.from_state(given)(one, other), net(one, other), rtol=1e-3)


def test_damaged_weights_are_explained(state: dict[str, Tensor]) -> None:
    without = {k: v for k, v in state.items() if k != "net.slice4.19.bias"}
    with pytest.raises(UserError, match=r"no net\.slice4\.19\.bias"):
        LPIPS.from_state(without)
    narrow = state | {"lin2.model.1.weight": torch.zeros(1, 192, 1, 1)}
    with pytest.raises(UserError, match=r"lin2\.model\.1\.weight is \(1, 192, 1, 1\).*256"):
        LPIPS.from_state(narrow)
    # The tiny released-style file holds but two of the tensors.
    tiny = torch.load(FIXTURES / "tokenizer.pt", weights_only=True)
    with pytest.raises(UserError, match="hold no net"):
        LPIPS.from_state({k.removeprefix("module."): v for k, v in tiny.items()})
