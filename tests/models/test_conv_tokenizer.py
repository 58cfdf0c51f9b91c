"""The published VQ-VAE: its numbers, its gradients, padding, exact tokens, the perceptual term."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.models import conv_tokenizer
from jowa.models.conv_tokenizer import (
    ConvTokenizer,
    ConvTokenizerConfig,
    Upsample,
    infer_config,
    to_signed,
)
from jowa.models.lpips import LPIPS

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
TENSORS = load_file(FIXTURES / "tensors.safetensors")
GAMES = torch.zeros(2, dtype=torch.long)
KEYS = torch.arange(8)  # of segments


def released_state() -> dict[str, Tensor]:
    state = torch.load(FIXTURES / "tokenizer.pt", weights_only=True)
    return {k.removeprefix("module."): v for k, v in state.items() if "lpips" not in k}


@pytest.fixture
def released() -> ConvTokenizer:
    """The fixture's random weights at a tiny size."""
    state = released_state()
    tokenizer = ConvTokenizer(infer_config(state))
    tokenizer.load_state_dict(state)
    return tokenizer.eval()


def make(**options: Any) -> ConvTokenizer:
    torch.manual_seed(0)
    sizes = {"vocabulary": 16, "code_width": 8, "channels": 8, "residual_blocks": 1}
    tokenizer = ConvTokenizer(ConvTokenizerConfig(**{**sizes, **options}))
    torch.nn.init.normal_(tokenizer.embedding.weight, std=0.3)
    return tokenizer


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 84, 84), generator=generator, dtype=torch.uint8)


def whole(rows: int, length: int) -> Tensor:
    return torch.ones(rows, length, dtype=torch.bool)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_names_and_sizes_are_those_of_the_released_weights() -> None:
    state = released_state()
    config, sizes = infer_config(state), EXPECTED["tokenizer"]
    assert (config.vocabulary, config.code_width) == (sizes["vocab_size"], sizes["embed_dim"])
    assert (config.channels, config.residual_blocks) == (sizes["ch"], sizes["num_res_blocks"])
    assert list(ConvTokenizer(config).state_dict()) == list(state)
    # Other sizes are found as well.
    other = ConvTokenizerConfig(vocabulary=10, code_width=6, channels=4, residual_blocks=3)
    assert infer_config(ConvTokenizer(other).state_dict()) == other


def test_the_defaults_are_the_published_size() -> None:
    with torch.device("meta"):
        tokenizer = ConvTokenizer(ConvTokenizerConfig())
    assert sum(p.numel() for p in tokenizer.parameters()) == 4_047_489
    assert tokenizer.codebook.shape == (2048, 512)


@torch.no_grad()
def test_published_tokens_and_reconstructions(released: ConvTokenizer) -> None:
    images, tokens = TENSORS["tok.images"], TENSORS["tok.tokens"]
    close(released.embed(images), TENSORS["tok.z"])
    assert torch.equal(released.encode(images), tokens)
    close(released.decode(tokens), TENSORS["tok.reconstruction"])


def test_published_losses(released: ConvTokenizer) -> None:
    images = TENSORS["tok.images"].view(2, 3, 84, 84)
    loss, metrics, _ = released.loss(images, GAMES, whole(2, 3), KEYS[: len(images)])
    expected = EXPECTED["tokenizer_loss"]
    assert float(metrics["tokenizer/reconstruction"]) == pytest.approx(
        expected["reconstruction_loss"], rel=1e-4
    )
    # The published commitment loss is the sum of the codebook's term and the encoder's.
    assert 2 * float(metrics["tokenizer/commitment"]) == pytest.approx(
        expected["commitment_loss"], rel=1e-4
    )
    total = expected["reconstruction_loss"] + expected["commitment_loss"]
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert metrics["tokenizer/codes_in_batch"] == TENSORS["tok.tokens"].unique().numel()
    shown = TENSORS["tok.reconstruction"] - TENSORS["tok.images"] / 255
    close(metrics["tokenizer/l1"], shown.abs().mean())


def test_pixels_are_repeated_as_nearest_neighbour_upsampling_does() -> None:
    torch.manual_seed(0)
    upsample, x = Upsample(4, 7), torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = upsample.conv(F.interpolate(x, scale_factor=7.0, mode="nearest"))
    weight = torch.randn_like(expected)
    actual = upsample(x)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_encoder_learns_as_if_nothing_were_quantised() -> None:
    frames = random_frames(2, 2)
    tokenizer = make(commitment_weight=0.7)
    loss, *_ = tokenizer.loss(frames, GAMES, whole(2, 2), KEYS[: len(frames)])
    loss.backward()
    learned = tokenizer.encoder.conv_in.weight.grad

    by_hand = make()
    target = to_signed(frames.view(4, 1, 84, 84))
    z = by_hand.embed(frames.view(4, 1, 84, 84))
    code = by_hand.lookup(by_hand.quantise(z)).detach().requires_grad_()
    error = (by_hand.reconstruct(code) - target).abs().mean()
    (at_code,) = torch.autograd.grad(error, code)
    z.backward(at_code + 0.7 * 2 * (z - code).detach() / z.numel())
    expected = by_hand.encoder.conv_in.weight.grad
    assert learned is not None and expected is not None and expected.abs().max() > 1e-6
    torch.testing.assert_close(learned, expected, rtol=1e-3, atol=1e-7)


def test_codes_are_drawn_to_the_vectors_that_use_them_and_by_nothing_else() -> None:
    frames, tokenizer = random_frames(2, 2), make()
    loss, *_ = tokenizer.loss(frames, GAMES, whole(2, 2), KEYS[: len(frames)])
    loss.backward()
    with torch.no_grad():
        z = tokenizer.embed(frames.view(4, 1, 84, 84))
        tokens = tokenizer.quantise(z)
        pull = 2 * (tokenizer.lookup(tokens) - z) / z.numel()
        rows = pull.permute(0, 2, 3, 1).flatten(0, 2)
        expected = torch.zeros_like(tokenizer.codebook).index_add_(0, tokens.flatten(), rows)
    assert 1 < tokens.unique().numel() < 16
    torch.testing.assert_close(tokenizer.embedding.weight.grad, expected, rtol=1e-3, atol=1e-8)


def test_padding_changes_neither_loss_nor_gradients() -> None:
    frames, mask = random_frames(2, 4), whole(2, 4)
    mask[0, 1:], mask[1, 2:] = False, False
    results = []
    for content in (torch.zeros_like(frames), random_frames(2, 4, seed=1)):
        tokenizer = make()
        observations = torch.where(mask[..., None, None], frames, content)
        loss, metrics, _ = tokenizer.loss(observations, GAMES, mask, KEYS[: len(observations)])
        loss.backward()
        results.append((loss, metrics, tokenizer.encoder.conv_in.weight.grad))
    tokenizer = make()
    only_real = frames[mask].unsqueeze(1)
    loss, metrics, _ = tokenizer.loss(only_real, GAMES, whole(3, 1), KEYS[: len(only_real)])
    loss.backward()
    for other in results:
        torch.testing.assert_close(other, (loss, metrics, tokenizer.encoder.conv_in.weight.grad))


def test_a_batch_of_nothing_but_padding_is_no_loss_and_no_nan() -> None:
    tokenizer = make()
    loss, metrics, _ = tokenizer.loss(random_frames(2, 2), GAMES, ~whole(2, 2), KEYS[:2])
    loss.backward()
    assert loss == 0 and all(value == 0 for value in metrics.values())
    assert all(p.grad is not None and not p.grad.any() for p in tokenizer.parameters())


def test_a_step_draws_its_frames_among_the_real_ones() -> None:
    tokenizer = make(frames_per_segment=2)
    # Frame n is grey level n all over, so the encoder's input says which were drawn.
    frames = torch.arange(8, dtype=torch.uint8).view(2, 4, 1, 1).expand(2, 4, 84, 84)
    mask = whole(2, 4)
    mask[1, 2:] = False
    drawn: list[list[int]] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        drawn.append([round(float(level)) for level in (inputs[0][:, 0, 0, 0] + 1) * 127.5])

    tokenizer.encoder.register_forward_pre_hook(note)
    with torch.no_grad():
        for step in range(20):
            tokenizer.loss(frames, GAMES, mask, KEYS[:2] + 10 * step)
        assert all(len(set(step)) == 4 for step in drawn)
        assert all({4, 5} < set(step) and max(step) == 5 for step in drawn)
        assert {level for step in drawn for level in step} == {0, 1, 2, 3, 4, 5}
        drawn.clear()
        mask[0, 1:] = mask[1] = False
        _, metrics, _ = tokenizer.loss(frames, GAMES, mask, KEYS[:2])
    assert 0 in drawn[0] and len(drawn[0]) == 4
    assert metrics["tokenizer/codes_in_batch"] == tokenizer.encode(frames[:1, 0:1]).unique().numel()


def test_a_short_training_lowers_the_error_on_real_frames(data: list[EpisodeFile]) -> None:
    frames = torch.from_numpy(data[0].frames(np.arange(0, 120, 15))).view(2, 4, 84, 84)
    tokenizer = make().train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)

    def step() -> float:
        loss, metrics, _ = tokenizer.loss(frames, GAMES, whole(2, 4), KEYS[: len(frames)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(metrics["tokenizer/reconstruction"])

    errors = [step() for _ in range(30)]
    assert errors[-1] < 0.65 * errors[0]
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.encode(frames.view(8, 1, 84, 84)))
    shown = (decoded - frames.view(8, 1, 84, 84) / 255).abs().mean()
    assert float(shown) < 0.65 * 0.5 * errors[0]


def test_chunks_change_neither_tokens_nor_frames(
    released: ConvTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = random_frames(11, 1)
    tokens, decoded = [], []
    for chunk in (3, 11):
        monkeypatch.setattr(conv_tokenizer, "chunk_size", lambda frames, chunk=chunk: chunk)
        tokens.append(released.encode(frames))
        decoded.append(released.decode(tokens[-1]))
    assert torch.equal(*tokens)
    torch.testing.assert_close(*decoded)
    assert released.encode(frames[:0]).shape == (0, 36)
    assert released.decode(tokens[0][:0]).shape == (0, 1, 84, 84)


def test_neither_autocast_nor_dropout_changes_tokens_and_frames() -> None:
    frames = random_frames(4, 1)
    tokenizer = make(dropout=0.5).train()
    tokens = tokenizer.encode(frames)
    decoded = tokenizer.decode(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(frames), tokens)
        again = tokenizer.decode(tokens)
    assert again.dtype == torch.float32 and torch.equal(again, decoded)
    torch.testing.assert_close(tokenizer.eval().decode(tokens), decoded)
    assert torch.equal(tokenizer.encode(frames), tokens)
    # Learning does drop out.
    first, second = (
        tokenizer.train().loss(frames, GAMES, whole(4, 1), KEYS[: len(frames)])[0] for _ in range(2)
    )
    assert first != second


def test_bfloat16_training_quantises_in_float32(released: ConvTokenizer) -> None:
    frames = TENSORS["tok.images"].view(2, 3, 84, 84)
    exact, *_ = released.loss(frames, GAMES, whole(2, 3), KEYS[: len(frames)])
    seen: list[Tensor] = []
    released.pre_quant_conv.register_forward_hook(lambda module, x, z: seen.append(z))
    released.embedding.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, *_ = released.loss(frames, GAMES, whole(2, 3), KEYS[: len(frames)])
    assert loss.dtype == torch.float32 and loss != exact
    torch.testing.assert_close(loss, exact, rtol=0.01, atol=0)
    z, tokens = seen
    assert z.dtype == torch.bfloat16
    vectors = z.permute(0, 2, 3, 1).flatten(0, 2).double()
    distances = (vectors.unsqueeze(1) - released.codebook.double()).square().sum(-1)
    assert torch.equal(tokens.flatten(), distances.argmin(1))


@pytest.mark.parametrize("frames_per_segment", [3, 100])
def test_the_loss_compiles_as_one_graph(frames_per_segment: int) -> None:
    frames, mask = random_frames(2, 2), whole(2, 2)
    mask[1, 1:] = False
    tokenizer = make(frames_per_segment=frames_per_segment)
    loss = torch.compile(tokenizer.loss, backend="eager", fullgraph=True)
    compiled, plain = (
        loss(frames, GAMES, mask, KEYS[: len(frames)]),
        tokenizer.loss(frames, GAMES, mask, KEYS[: len(frames)]),
    )
    torch.testing.assert_close(compiled, plain)


def test_the_perceptual_term_is_added_but_belongs_to_no_checkpoint() -> None:
    torch.manual_seed(0)
    net = LPIPS()
    for head in (net.lin0, net.lin1, net.lin2, net.lin3, net.lin4):
        head.model[1].weight.abs_()
    frames, tokenizer = random_frames(1, 2), make(perceptual_weight=0.5)
    with pytest.raises(AssertionError, match="set_perceptual"):
        tokenizer.loss(frames, GAMES[:1], whole(1, 2), KEYS[: len(frames)])
    names, parameters = list(tokenizer.state_dict()), list(tokenizer.parameters())
    tokenizer.set_perceptual(net)
    assert list(tokenizer.state_dict()) == names and list(tokenizer.parameters()) == parameters

    loss, metrics, _ = tokenizer.train().loss(frames, GAMES[:1], whole(1, 2), KEYS[: len(frames)])
    loss.backward()
    plain = make()
    without, *_ = plain.loss(frames, GAMES[:1], whole(1, 2), KEYS[: len(frames)])
    without.backward()
    assert metrics["tokenizer/perceptual"] > 0
    torch.testing.assert_close(loss, without + 0.5 * metrics["tokenizer/perceptual"])
    ours, theirs = tokenizer.decoder.conv_out.weight.grad, plain.decoder.conv_out.weight.grad
    assert not torch.allclose(ours, theirs, rtol=1e-3)
    assert all(p.grad is None for p in net.parameters()) and not net.training

    tokenizer.to(torch.float64)
    assert next(net.parameters()).dtype == torch.float64
