"""The patch tokenizer on real frames: backgrounds, learning, dead codes, padding, batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jowa.data.episodes import EpisodeFile
from jowa.data.segments import Batch, SegmentDataset
from jowa.models.patch_tokenizer import (
    PatchTokenizer,
    PatchTokenizerConfig,
    from_patches,
    to_patches,
)

Maker = Callable[..., PatchTokenizer]


def frames_of(data: list[EpisodeFile], count: int = 40) -> tuple[Tensor, Tensor]:
    """(N, 1, 84, 84) frames of all games and their games (N,)."""
    frames, games = [], []
    for file in data:
        rows = np.linspace(0, file.num_transitions - 1, count).astype(np.int64)
        frames.append(torch.from_numpy(file.frames(rows)).unsqueeze(1))
        games.append(torch.full((count,), file.game.id))
    return torch.cat(frames), torch.cat(games)


def train(tokenizer: PatchTokenizer, batch: Batch, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    tokenizer.train()
    losses = []
    for _ in range(steps):
        loss, _, statistics = tokenizer.loss(
            batch.observations, batch.games, batch.mask_padding, batch.keys
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tokenizer.learn(statistics)
        losses.append(float(loss.detach()))
    return losses


def segments(data: list[EpisodeFile], count: int = 12) -> Batch:
    dataset = SegmentDataset(data, length=4, stride=4)
    return dataset.batch(np.linspace(0, dataset.num_segments - 1, count).astype(np.int64))


def test_patches_are_cut_row_by_row_and_put_back() -> None:
    images = torch.randint(0, 256, (3, 84, 84))
    patches = to_patches(images)
    for row, column in ((0, 0), (2, 5), (5, 1)):
        cut = images[1, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
        assert torch.equal(patches[1, row * 6 + column], cut.flatten())
    assert torch.equal(from_patches(patches), images)


def test_a_frame_of_nothing_but_background_is_one_token(
    data: list[EpisodeFile], make_tokenizer: Maker
) -> None:
    tokenizer = make_tokenizer()
    train(tokenizer, segments(data), 5)
    games = torch.tensor([file.game.id for file in data])
    tokens = tokenizer.encode(tokenizer.background[games].unsqueeze(1), games)
    assert tokens.unique().numel() == 1
    # A real frame differs from it only where something stands.
    frames, of = frames_of(data, 5)
    shows = to_patches(frames[:, 0] != tokenizer.background[of]).any(-1)
    assert shows.any() and not shows.all()
    assert (tokenizer.encode(frames, of)[~shows] == tokens[0, 0]).all()


def test_training_makes_reconstructions_better_than_the_background(
    data: list[EpisodeFile], make_tokenizer: Maker
) -> None:
    tokenizer = make_tokenizer(vocabulary=64, hidden=48, code_width=8, patches_per_frame=6)
    frames, games = frames_of(data)

    def error() -> float:
        """Mean absolute error on pixels that differ from the background."""
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(frames, games), games)
        true = frames.float() / 255
        foreground = (true[:, 0] - tokenizer.background[games].float() / 255).abs() > 0.03
        return float((decoded - true).abs()[:, 0][foreground].mean())

    batch = segments(data)
    losses = train(tokenizer, batch, 2)
    before = error()
    losses += train(tokenizer, batch, 120)
    assert np.mean(losses[-10:]) < 0.7 * losses[0]
    assert error() < 0.75 * before


def test_dead_codes_restart_and_used_ones_stay(
    data: list[EpisodeFile], make_tokenizer: Maker
) -> None:
    tokenizer = make_tokenizer(ema_decay=0.5, restart_below=0.1)
    batch = segments(data)
    train(tokenizer, batch, 3)
    with torch.no_grad():
        tokenizer.codes[7] = 1e4
        tokenizer.code_sums[7] = 1e4 * 1.0
        tokenizer.code_counts[7] = 1.0
    train(tokenizer, batch, 8)
    assert tokenizer.codes.abs().max() < 1e3
    assert (tokenizer.code_counts > 0).all() and tokenizer.codes.isfinite().all()


def test_tokens_keep_their_meaning_where_there_are_more_codes_than_patches(
    data: list[EpisodeFile],
) -> None:
    torch.manual_seed(0)
    # The encoder stands still, so only the codes can make a token change.
    config = PatchTokenizerConfig(vocabulary=512, code_width=4, hidden=16, ema_decay=0.8)
    tokenizer = PatchTokenizer(config).eval()
    batch = segments(data, count=2)
    frames, games = batch.observations.flatten(0, 1).unsqueeze(1), batch.games.repeat_interleave(4)
    patches = tokenizer.residual(frames[:, 0], games).flatten(0, 1).unique(dim=0)
    with torch.no_grad():
        served = tokenizer.encoder(patches)
        count = len(served)
        assert count < 400
        tokenizer.codes.copy_(5.0 + torch.randn(512, 4))
        tokenizer.codes[:count] = served
        tokenizer.code_counts[:count] = 1.0
        tokenizer.code_sums[:count] = served
    before = tokenizer.encode(frames, games)
    tokenizer.train()
    for _ in range(30):
        inputs = batch.observations, batch.games, batch.mask_padding, batch.keys
        tokenizer.learn(tokenizer.loss(*inputs).statistics)
    after = tokenizer.eval().encode(frames, games)
    # Patches that differ by next to nothing may change places through rounding.
    assert (after == before).float().mean() > 0.95


def test_evaluation_leaves_the_codes_alone(data: list[EpisodeFile], make_tokenizer: Maker) -> None:
    tokenizer = make_tokenizer()
    batch = segments(data)
    train(tokenizer, batch, 3)
    before = tokenizer.fingerprint()
    tokenizer.eval()
    tokenizer.loss(batch.observations, batch.games, batch.mask_padding, batch.keys)
    frames, games = frames_of(data, 3)
    tokenizer.decode(tokenizer.encode(frames, games), games)
    assert tokenizer.fingerprint() == before
    train(tokenizer, batch, 1)
    assert tokenizer.fingerprint() != before


def test_padding_never_changes_loss_gradients_or_codes(
    data: list[EpisodeFile], make_tokenizer: Maker
) -> None:
    """Also where there are fewer real patches than a step trains on."""
    whole = segments(data, 6)
    mask = whole.mask_padding.clone()
    mask[:, 2:] = False
    junk = torch.randint(0, 256, whole.observations.shape, dtype=torch.uint8)
    results = []
    for content in (torch.zeros_like(junk), junk):
        tokenizer = make_tokenizer(patches_per_frame=36).train()
        observations = torch.where(mask[..., None, None], whole.observations, content)
        loss, metrics, statistics = tokenizer.loss(observations, whole.games, mask, whole.keys)
        loss.backward()
        gradient = tokenizer.encoder[0].weight.grad
        tokenizer.learn(statistics)
        results.append((loss, metrics["tokenizer/foreground_kept"], gradient, tokenizer.codes))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_do_not_depend_on_the_rest_of_the_batch(
    data: list[EpisodeFile], make_tokenizer: Maker
) -> None:
    for steps in (1, 25):
        tokenizer = make_tokenizer(vocabulary=256, hidden=64, code_width=16)
        train(tokenizer, segments(data), steps)
        tokenizer.eval()
        frames, games = frames_of(data, 60)
        together = tokenizer.encode(frames, games)
        alone = torch.cat(
            [tokenizer.encode(frames[i : i + 1], games[i : i + 1]) for i in range(120)]
        )
        assert torch.equal(alone, together)
        order = torch.randperm(120)
        assert torch.equal(tokenizer.encode(frames[order], games[order]), together[order])


def test_stored_tokens_are_those_of_encode(data: list[EpisodeFile], make_tokenizer: Maker) -> None:
    tokenizer = make_tokenizer()
    train(tokenizer, segments(data), 3)
    rows = np.arange(50)
    stored = tokenizer.encode_frames(data[1].frames(rows), data[1].game.id, chunk=7)
    frames = torch.from_numpy(data[1].frames(rows)).unsqueeze(1)
    expected = tokenizer.encode(frames, torch.full((50,), data[1].game.id))
    assert np.array_equal(stored, expected.numpy())
