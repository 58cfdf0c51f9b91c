"""LPIPS: the perceptual distance of two images, from the features of a frozen VGG16.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018. The
weights are a separate download; modules carry the names of the file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.errors import UserError

# The convolutions of VGG16's five slices: position in VGG16 to (inputs, outputs). Each is
# followed by a ReLU; a slice ends after its last, and every slice but the first starts with
# max pooling.
_SLICES: tuple[dict[int, tuple[int, int]], ...] = (
    {0: (3, 64), 2: (64, 64)},
    {5: (64, 128), 7: (128, 128)},
    {10: (128, 256), 12: (256, 256), 14: (256, 256)},
    {17: (256, 512), 19: (512, 512), 21: (512, 512)},
    {24: (512, 512), 26: (512, 512), 28: (512, 512)},
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class VGG16(nn.Module):
    """The convolutions of VGG16."""

    def __init__(self) -> None:
        super().__init__()
        for number, convolutions in enumerate(_SLICES, start=1):
            layers = {str(i): nn.Conv2d(*sizes, 3, padding=1) for i, sizes in convolutions.items()}
            self.add_module(f"slice{number}", nn.ModuleDict(layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features after each slice of scaled images (N, 3, H, H)."""
        features = []
        for index, layers in enumerate(self.children()):
            x = F.max_pool2d(x, 2) if index else x
            for convolution in layers.children():
                x = F.relu(convolution(x))
            features.append(x)
        return features


class ChannelWeights(nn.Module):
    """How much each channel's difference counts: a 1x1 convolution without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Second in the file, after a dropout that acts only while the weights are learned.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ScalingLayer(nn.Module):
    """From [-1, 1] to the statistics that VGG16 was trained with."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class LPIPS(nn.Module):
    """Frozen and always in evaluation mode; gradients pass through to its input only."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer, self.net = ScalingLayer(), VGG16()
        for index, convolutions in enumerate(_SLICES):
            _, width = next(reversed(convolutions.values()))
            self.add_module(f"lin{index}", ChannelWeights(width))
        self.requires_grad_(False).eval()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> LPIPS:
        """The net of a file's tensors, whose names may start with `lpips.`; others are ignored.

        UserError naming the first tensor that is missing or of the wrong shape.
        """
        given = {name.removeprefix("lpips."): tensor for name, tensor in state.items()}
        net = cls()
        wanted = net.state_dict()
        for name, tensor in wanted.items():
            if name not in given:
                if name.startswith("scaling_layer."):  # constants that not every file repeats
                    continue
                raise UserError(
                    f"The perceptual weights hold no {name}: give a file with VGG16's "
                    f"convolutions (net.slice1.0.weight, ...) and the LPIPS heads "
                    f"(lin0.model.1.weight, ...), or set perceptual_weight to 0."
                )
            if given[name].shape != tensor.shape:
                raise UserError(
                    f"The perceptual weights' {name} is {tuple(given[name].shape)} but VGG16's "
                    f"is {tuple(tensor.shape)}: give the weights of LPIPS with VGG16, or set "
                    f"perceptual_weight to 0."
                )
        net.load_state_dict({name: given.get(name, tensor) for name, tensor in wanted.items()})
        return net

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (N,) of grayscale images (N, 1, H, H) in [-1, 1] from targets."""
        heads = [head for head in self.children() if isinstance(head, ChannelWeights)]
        distance = torch.zeros(len(images), device=images.device)
        features = zip(heads, self._features(images), self._features(targets), strict=True)
        for head, ours, theirs in features:
            distance = distance + head((ours - theirs).square()).float().mean((1, 2, 3))
        return distance

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features of each slice, float32, of length 1 over the channels."""
        scaled = self.scaling_layer(images.expand(-1, 3, -1, -1))
        return [
            x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)
            for x in (x.float() for x in self.net(scaled))
        ]
