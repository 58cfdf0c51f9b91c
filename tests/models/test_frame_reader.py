"""The reader: DQN's convolutions over the tokens' pictures, in frames as in dreams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.models.frame_reader import FrameReader, scaled

Maker = Callable[..., Any]


def plain_kernel(folded: Tensor, stride: int) -> Tensor:
    """The kernel (O, C, 2s, 2s) of which (O, C·s·s, 2, 2) are the weights over cells of s x s."""
    outputs, channels = folded.shape[:2]
    C = channels // stride**2
    cells = folded.view(outputs, C, stride, stride, 2, 2)
    return cells.permute(0, 1, 4, 2, 5, 3).reshape(outputs, C, 2 * stride, 2 * stride)


@torch.no_grad()
def test_it_is_a_plain_convolutional_network_of_the_decoded_frames(
    data: list[EpisodeFile], make_tokenizer: Maker
) -> None:
    torch.manual_seed(0)
    reader = FrameReader(hidden=12, width=5, dropout=0.0)
    reader.initialise()
    for layer in (reader.first, reader.second, reader.hidden):
        layer.bias.normal_()
    tokenizer, game = make_tokenizer(), data[0].game
    tokenizer.codes.normal_()
    tokens = torch.randint(0, tokenizer.vocabulary, (2, 6, 36))
    pictures = tokenizer.code_pictures()
    ours = reader(*(reader.cells(part, scaled(pictures)) for part in tokens))

    # The decoder's pictures may leave the range of grey levels, which `decode` does not.
    residual = tokenizer.decoder(tokenizer.codes)
    assert torch.equal(pictures, residual)
    frames = []
    for part in tokens:
        grid = residual[part].view(6, 6, 6, 14, 14).permute(0, 1, 3, 2, 4).reshape(6, 1, 84, 84)
        frames.append(grid)
        games = torch.full((6,), game.id)
        background = tokenizer.background[games].unsqueeze(1) / 255
        shown = (background + grid).clamp(0, 1)
        torch.testing.assert_close(tokenizer.decode(part, games), shown)
    x = F.conv2d(4 * torch.cat(frames, 1), plain_kernel(reader.first.weight, 4), stride=4)
    x = F.relu(x + reader.first.bias[:, None, None])
    x = F.relu(F.conv2d(x, plain_kernel(reader.second.weight, 2), reader.second.bias, stride=2))
    torch.testing.assert_close(ours, reader.out(F.relu(reader.hidden(x.flatten(1)))))


@torch.no_grad()
def test_q_sees_this_frame_and_the_one_before_as_pictures(make_model: Maker) -> None:
    """Codes that look alike are read alike, others are not; the first frame follows nothing."""
    model = make_model(reader_width=8, scale=3.0)
    model.pictures[5] = model.pictures[3]
    tokens = torch.randint(6, 24, (1, 3, 36))

    def read(frame: int, code: int) -> Tensor:
        changed = tokens.clone()
        changed[0, frame, 7] = code
        return model.reader.read_all(changed, model.pictures)[0]

    for frame in range(3):
        assert torch.equal(read(frame, 3), read(frame, 5))
        moved = (read(frame, 3) != read(frame, 4)).any(-1).tolist()
        assert moved == [i in (frame, frame + 1) for i in range(3)]
    # One by one, as a planner reads them.
    one_by_one = model.reader.read(
        tokens[0], model.previous_frames(tokens)[0], model.tables().pictures
    )
    torch.testing.assert_close(one_by_one, model.reader.read_all(tokens, model.pictures)[0])


def test_gradients_reach_all_of_it(make_model: Maker) -> None:
    model = make_model(reader_width=8, scale=3.0).train()
    tokens = torch.randint(0, 24, (2, 3, 36))
    actions, games = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    model(tokens, actions, games, world=False).q_logits.square().sum().backward()
    for name, parameter in model.reader.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("seed", [0, 1])
def test_translated_things_are_read_by_the_same_kernels(seed: int) -> None:
    """A thing four pixels further on is the same reading one cell further on."""
    reader = FrameReader(hidden=4, width=3, dropout=0.0)
    rng = np.random.default_rng(seed)
    thing = torch.from_numpy(rng.normal(size=(5, 3))).float()
    readings = []
    for shift in (0, 4):
        frame = torch.zeros(84, 84)
        frame[30 + shift : 35 + shift, 41:44] = thing
        pictures = frame.view(6, 14, 6, 14).transpose(1, 2).reshape(1, 36, 196)
        cells = reader.cells(torch.arange(36).unsqueeze(0), pictures[0])
        readings.append(reader.first(torch.cat([cells, cells], dim=1)))
    torch.testing.assert_close(readings[0][:, :, :-1], readings[1][:, :, 1:])
