"""The world-action model: one transformer that is world model and Q-function at once.

A block is 37 tokens, 36 of the frame and then the action; a sequence is up to 8 blocks (JOWA
paper, section 3). Shapes: B rows, L frames, K = 36 tokens a frame, N = 37·L positions, D width,
V observation tokens, A = 18 actions, Z atoms, Q ensemble members.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jowa.games import LEGAL_ACTIONS, NUM_ACTIONS, NUM_GAMES
from jowa.models.frame_reader import FrameReader, scaled
from jowa.models.heads import QEnsemble, classifier
from jowa.models.outputs import Output, Tables
from jowa.models.patch_tokenizer import PATCH_PIXELS
from jowa.models.tokenizer import Tokenizer
from jowa.models.transformer import Transformer, TransformerConfig

FRAME_TOKENS = 36
BLOCK_TOKENS = FRAME_TOKENS + 1
MAX_FRAMES = 8


@dataclass
class WorldActionConfig:
    """Sizes and options of the model; the options are off in the published algorithm.

    codebook_width > 0 embeds an observation token by its projected codebook vector (plus a
    learned row); copy_previous feeds the previous frame's token at the place to be predicted
    and lets a gate raise its logit; with reader_width > 0 Q reads the pictures of a frame and the
    one before by convolutions and an MLP of that width (reader_dropout is theirs) instead of the
    transformer's activation, which also sees the last actions, and then mostly repeats them;
    bell_start > 0 is the deviation of the initial return bell. Ablations of the paper:
    distributional=False has Q heads give expected returns, to be trained by squared error, instead
    of distributions over `atoms`; task_embedding=False leaves the model to recognise the game by
    its frames.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vocabulary: int = 1024
    q_width: int = 192
    q_members: int = 1
    distributional: bool = True
    atoms: int = 51
    value_min: float = -10.0
    value_max: float = 30.0
    codebook_width: int = 0
    copy_previous: bool = False
    reader_width: int = 0
    reader_dropout: float = 0.0
    bell_start: float = 0.0
    q_dropout: float = 0.01
    task_embedding: bool = True


class WorldActionModel(nn.Module):
    """Transformer, embeddings and heads. Knows nothing of devices, files or processes."""

    support: Tensor
    legal_actions: Tensor
    codebook: Tensor
    pictures: Tensor

    def __init__(self, config: WorldActionConfig) -> None:
        super().__init__()
        self.config = config
        D, V = config.transformer.width, config.vocabulary
        self.transformer = Transformer(config.transformer)
        self.position_embedding = nn.Embedding(MAX_FRAMES * BLOCK_TOKENS, D)
        self.action_embedding = nn.Embedding(NUM_ACTIONS, D)
        self.observation_embedding = nn.Embedding(V, D)
        if config.task_embedding:
            self.task_action_embedding = nn.Embedding(NUM_GAMES, D)
            self.task_observation_embedding = nn.Embedding(NUM_GAMES, D)
        if config.codebook_width:
            self.register_buffer("codebook", torch.zeros(V, config.codebook_width))
            self.codebook_projection = nn.Linear(config.codebook_width, D, bias=False)
        if config.copy_previous:
            # Row V stands for "there is no previous frame".
            self.hint_embedding = nn.Embedding(V + 1, D)
            self.copy_gate = nn.Linear(D, 1)
            if config.codebook_width:
                self.hint_projection = nn.Linear(config.codebook_width, D, bias=False)
        if self.has_reader:
            self.register_buffer("pictures", torch.zeros(V, PATCH_PIXELS))
            self.reader = FrameReader(config.reader_width, D, config.reader_dropout)
        self.observation_head = classifier(D, V)
        self.reward_head = classifier(D, 3)
        self.end_head = classifier(D, 2)
        outputs = NUM_ACTIONS * (config.atoms if config.distributional else 1)
        self.q_head = QEnsemble(config.q_members, D, config.q_width, outputs, config.q_dropout)
        self.target_q_head = QEnsemble(
            config.q_members, D, config.q_width, outputs, config.q_dropout
        )
        self.target_q_head.requires_grad_(False)
        support = torch.linspace(config.value_min, config.value_max, config.atoms)
        self.register_buffer("support", support, persistent=False)
        legal = torch.from_numpy(LEGAL_ACTIONS.copy())
        self.register_buffer("legal_actions", legal, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Weights N(0, 0.02), biases 0, LayerNorm 1 and 0; the target equals the Q head."""
        for name, parameter in self.named_parameters():
            if "ln" in name or "norm" in name:
                continue
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, 0.02)
        if self.config.codebook_width:
            # The projected codebook vector is the embedding; the learned row only corrects it.
            nn.init.zeros_(self.observation_embedding.weight)
            nn.init.normal_(self.codebook_projection.weight, 0.0, self.config.codebook_width**-0.5)
        if self.has_reader:
            self.reader.initialise()
        if self.config.bell_start:
            assert self.config.distributional, "checked with the configuration"
            self.q_head.start_near_zero(self.support, NUM_ACTIONS, self.config.bell_start)
        self.update_target()

    @property
    def has_reader(self) -> bool:
        """Whether Q reads frames by themselves instead of the sequence."""
        return self.config.reader_width > 0

    @torch.no_grad()
    def update_target(self) -> None:
        """Copies the Q head to the target head (hard update)."""
        self.target_q_head.load_state_dict(self.q_head.state_dict())

    def freeze_heads(self, world: bool, q: bool) -> None:
        """Makes the heads of world model and Q, and what Q reads with, trainable or not; the target
        head never is."""
        for head in (self.observation_head, self.reward_head, self.end_head):
            head.requires_grad_(world)
        if self.config.copy_previous:
            self.copy_gate.requires_grad_(world)
        self.q_head.requires_grad_(q)
        if self.has_reader:
            self.reader.requires_grad_(q)
        self.target_q_head.requires_grad_(False)

    @torch.no_grad()
    def set_codes(self, tokenizer: Tokenizer) -> None:
        """Takes over what the model uses of the tokenizer: codebook vectors, codes' pictures."""
        if self.config.codebook_width:
            self.codebook.copy_(tokenizer.codebook)
        if self.has_reader:
            self.pictures.copy_(tokenizer.code_pictures())

    def tables(self) -> Tables:
        """The embedding of each observation token, as itself and as a hint."""
        observation, hint, pictures = self.observation_embedding.weight, None, None
        if self.config.codebook_width:
            observation = observation + self.codebook_projection(self.codebook).float()
        if self.config.copy_previous:
            hint = self.hint_embedding.weight
            if self.config.codebook_width:
                hint = hint + F.pad(self.hint_projection(self.codebook).float(), (0, 0, 0, 1))
        if self.has_reader:
            pictures = F.pad(scaled(self.pictures), (0, 0, 0, 1))
        return Tables(F.pad(observation, (0, 0, 0, 1)), hint, pictures)

    def previous_frames(self, obs_tokens: Tensor) -> Tensor:
        """(B, L, 36): the frame before each of (B, L, 36); V where there is none."""
        return F.pad(obs_tokens[:, :-1], (0, 0, 1, 0), value=self.config.vocabulary)

    def hints(self, obs_tokens: Tensor) -> Tensor:
        """(B, L, 37): at each position, the token that stood in the frame before at the place
        this position predicts; V where there is none. From obs_tokens (B, L, 36)."""
        previous = self.previous_frames(obs_tokens)
        last = torch.full_like(obs_tokens[..., :1], self.config.vocabulary)
        return torch.cat([previous[..., 1:], last, obs_tokens[..., :1]], dim=-1)

    def embed(
        self,
        obs_tokens: Tensor,
        actions: Tensor,
        games: Tensor,
        hints: Tensor | None,
        tables: Tables | None = None,
    ) -> Tensor:
        """(B, 37·L, D) from whole blocks: obs_tokens (B, L, 36), actions (B, L), games (B,)."""
        B, L, _ = obs_tokens.shape
        tables = tables or self.tables()
        observations = F.embedding(obs_tokens, tables.observation)
        acts = self.action_embedding(actions).unsqueeze(2)
        if self.config.task_embedding:
            observations = observations + self.task_observation_embedding(games)[:, None, None]
            acts = acts + self.task_action_embedding(games)[:, None, None]
        x = torch.cat([observations, acts], dim=2)
        if hints is not None and tables.hint is not None:
            x = x + F.embedding(hints, tables.hint)
        positions = self.position_embedding.weight[: L * BLOCK_TOKENS]
        return x.reshape(B, L * BLOCK_TOKENS, -1) + positions

    def forward(
        self,
        obs_tokens: Tensor,
        actions: Tensor,
        games: Tensor,
        *,
        world: bool = True,
        q: bool = True,
        token_logits: bool = True,
        detach_q: bool = False,
        world_rows: Tensor | None = None,
    ) -> Output:
        """Every head at every step: obs_tokens (B, L, 36), actions (B, L), games (B,), L <= 8.

        `world` and `q` choose which heads to compute, `token_logits` whether the observation
        logits among them; with `detach_q` no gradient flows from the Q head into the backbone;
        the world model is computed for `world_rows` only, if they are given. A Q with a reader
        leaves the transformer to the world model.
        """
        assert obs_tokens.shape[1] <= MAX_FRAMES, f"a sequence holds at most {MAX_FRAMES} frames"
        rows: Tensor | slice = slice(None) if world_rows is None else world_rows
        output = Output()
        if self.has_reader:
            if world:
                few = obs_tokens[rows], actions[rows], games[rows]
                output = self._world(self.activations(*few), few[0], token_logits)
            read = self.reader.read_all(obs_tokens, self.pictures) if q else None
        else:
            blocks = self.activations(obs_tokens, actions, games)
            if world:
                output = self._world(blocks[rows], obs_tokens[rows], token_logits)
            read = blocks[:, :, FRAME_TOKENS - 1]
        if q:
            assert read is not None
            q_logits = self.q_head(read.detach() if detach_q else read)
            output = output._replace(q_logits=q_logits, target_q_logits=self.target_q_logits(read))
        return output

    def activations(self, obs_tokens: Tensor, actions: Tensor, games: Tensor) -> Tensor:
        """The transformer's activations (B, L, 37, D); arguments as of `forward`."""
        hints = self.hints(obs_tokens) if self.config.copy_previous else None
        hidden = self.transformer(self.embed(obs_tokens, actions, games, hints))
        return cast(Tensor, hidden).unflatten(1, (-1, BLOCK_TOKENS))

    def _world(self, blocks: Tensor, obs_tokens: Tensor, token_logits: bool) -> Output:
        """The world model's heads at activations (B, L, 37, D) of obs_tokens (B, L, 36)."""

        def at_predicting(x: Tensor) -> Tensor:
            return torch.cat([x[:, :, : FRAME_TOKENS - 1], x[:, :, -1:]], dim=2).flatten(1, 2)

        action, predicting = blocks[:, :, FRAME_TOKENS], at_predicting(blocks)
        hints = at_predicting(self.hints(obs_tokens)) if self.config.copy_previous else None
        return Output(
            self.predict_tokens(predicting, hints) if token_logits else None,
            self.reward_head(action),
            self.end_head(action),
            predicting=predicting,
            hints=hints,
        )

    @torch.no_grad()
    def target_q_logits(self, read: Tensor) -> Tensor:
        """The target head's logits (Q, B, L, A·Z) of what Q reads, always with dropout off."""
        self.target_q_head.eval()
        return self.target_q_head(read.detach())

    def predict_tokens(self, hidden: Tensor, hints: Tensor | None) -> Tensor:
        """Logits (..., V) of the token that each activation (..., D) predicts; hints (...)."""
        logits = self.observation_head(hidden)
        if hints is not None:
            gate = self.copy_gate(hidden).to(logits.dtype)
            known = hints < self.config.vocabulary
            index = hints.clamp(max=self.config.vocabulary - 1).unsqueeze(-1)
            logits = logits.scatter_add_(-1, index, gate * known.unsqueeze(-1))
        return logits

    def embed_block(
        self, actions: Tensor, previous: Tensor, games: Tensor, starts: Tensor, tables: Tables
    ) -> Tensor:
        """(R, 37, D): an action and the frame after it, but for what the frame's own tokens add.

        From actions (R,), the frames before them `previous` (R, 36), games (R,) and the position
        `starts` (R,) of the actions. Position k > 0 still lacks the observation table's row of the
        frame's token k - 1.
        """
        within = torch.arange(BLOCK_TOKENS, device=starts.device)
        x = F.embedding(starts.unsqueeze(1) + within, self.position_embedding.weight)
        if tables.hint is not None:
            x = x + F.embedding(F.pad(previous, (0, 1), value=self.config.vocabulary), tables.hint)
        acts = self.action_embedding(actions)
        if self.config.task_embedding:
            acts = acts + self.task_action_embedding(games)
            x[:, 1:] += self.task_observation_embedding(games).unsqueeze(1)
        x[:, 0] += acts
        return x

    def probabilities(self, q_logits: Tensor, members: Tensor | None = None) -> Tensor:
        """The ensemble's distribution (..., A, Z), in float32, of logits (Q, ..., A·Z).

        The mean over members, or a mixture of weights `members` (Q,) that add up to 1.
        """
        logits = q_logits.float().unflatten(-1, (NUM_ACTIONS, self.config.atoms))
        return mixture(logits.softmax(-1), members)

    def values(self, q_logits: Tensor, members: Tensor | None = None) -> Tensor:
        """Expected returns (..., A) of logits (Q, ..., A·Z), or (Q, ..., A) ones themselves."""
        if not self.config.distributional:
            return mixture(q_logits.float(), members)
        return (self.probabilities(q_logits, members) * self.support).sum(-1)


def mixture(x_Q: Tensor, members: Tensor | None) -> Tensor:
    """The mean of (Q, ...) over its first dimension, or the sum weighted by `members` (Q,)."""
    return x_Q.mean(0) if members is None else (x_Q.movedim(0, -1) * members).sum(-1)
