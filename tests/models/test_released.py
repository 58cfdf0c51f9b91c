"""Released weights: names and sizes found, and nothing taken that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jowa.errors import UserError
from jowa.models.released import build_model, build_tokenizer, released_names
from jowa.models.skeleton import Skeleton
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig, WorldActionModel

FIXTURES = Path(__file__).parents[1] / "fixtures"
PREFIXES = ("", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.")
TASKS = "task_emb.embedding_tables.1.weight"
Tensors = dict[str, Tensor]


def read(name: str, prefix: str) -> Tensors:
    state = torch.load(FIXTURES / name, weights_only=True)
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


@pytest.fixture
def released() -> Tensors:
    """A released model without a prefix: D = 64, 3 layers, 3 Q members, 48 tokens."""
    return read("JOWA_tiny.pt", "_orig_mod.module.")


@pytest.fixture
def codec() -> Tensors:
    """A released tokenizer without a prefix."""
    return read("tokenizer.pt", "module.")


def resized(width: int) -> Tensors:
    """A released model of another width and one layer; its numbers do not matter."""
    sizes = TransformerConfig(layers=1, heads=1, width=width)
    model = WorldActionModel(WorldActionConfig(sizes, vocabulary=5, q_width=4, atoms=3))
    state: Tensors = {}
    for name, tensor in model.state_dict().items():
        parts = released_names(name)
        state |= zip(parts, tensor.chunk(len(parts)), strict=True)
    return state


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_gives_the_same_weights(
    released: Tensors, codec: Tensors, prefix: str
) -> None:
    expected = build_model(released, "it", 4).state_dict()
    mask = {"transformer.blocks.0.attn.mask": torch.ones(296, 296).tril()}
    found = build_model({prefix + k: t for k, t in (mask | released).items()}, "it", 4)
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in found.state_dict().items())
    tokenizer = build_tokenizer({prefix + k: t for k, t in codec.items()}, "it")
    state = tokenizer.state_dict()
    assert state.keys() == {name for name in codec if not name.startswith("lpips.")}
    assert all(torch.equal(t, codec[name]) for name, t in state.items())


def test_tensors_land_where_they_belong(released: Tensors) -> None:
    model = build_model(released, "it", 4)
    block, layer = "transformer.blocks.1.attn", model.transformer.blocks[1].attention
    for index, part in enumerate(("query", "key", "value")):
        rows = slice(64 * index, 64 * (index + 1))
        assert torch.equal(layer.qkv.weight[rows], released[f"{block}.{part}.weight"])
        assert torch.equal(layer.qkv.bias[rows], released[f"{block}.{part}.bias"])
    assert torch.equal(
        model.action_embedding.weight, released["embedder.embedding_tables.0.weight"]
    )
    assert torch.equal(model.task_observation_embedding.weight, released[TASKS])
    for head, name in ((model.q_head, "head_q"), (model.target_q_head, "head_q_target")):
        assert torch.equal(head.norm2.bias, released[f"{name}.head_module.params.7"])
    assert not model.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert frozen and all(name.startswith("target_q_head.") for name in frozen)
    with torch.no_grad():
        output = model(torch.zeros(1, 1, 36).long(), torch.zeros(1, 1).long(), torch.tensor([59]))
    assert output.q_logits is not None and output.q_logits.shape == (3, 1, 1, 18 * 51)


@pytest.mark.parametrize(
    ("width", "given", "heads"), [(512, None, 8), (768, None, 12), (512, 4, 4), (60, 5, 5)]
)
def test_published_widths_need_no_number_of_heads(
    width: int, given: int | None, heads: int
) -> None:
    assert build_model(resized(width), "it", given).config.transformer.heads == heads


@pytest.mark.parametrize(
    ("width", "given", "words"),
    [
        (60, None, "width 60.*num_heads"),
        (60, 7, "num_heads=7 does not divide the width 60"),
        (512, 12, "num_heads=12 does not divide the width 512"),
        (512, 0, "num_heads=0"),
    ],
)
def test_numbers_of_heads_that_cannot_be(width: int, given: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(resized(width), "it", given)


def without(state: Tensors, *names: str) -> Tensors:
    return {name: tensor for name, tensor in state.items() if name not in names}


def cut(state: Tensors, name: str, rows: int) -> Tensors:
    return state | {name: state[name][:rows]}


def test_missing_and_left_over_tensors_are_named(released: Tensors, codec: Tensors) -> None:
    state = without(released, "pos_emb.weight", "transformer.ln_f.bias")
    with pytest.raises(UserError, match=r"^it .*ln_f.bias is missing \(2 in all\)\.$"):
        build_model(state, "it", 4)
    state = released | {"head_v.weight": torch.zeros(3), "head_v.bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"head_v.weight is left over \(2 in all\)\.$"):
        build_model(state, "it", 4)
    blocks = [name for name in released if name.startswith("transformer.blocks.1.")]
    with pytest.raises(UserError, match=r"blocks.1.\S+ is missing \(16.*blocks.2.\S+ is left over"):
        build_model(without(released, *blocks), "it", 4)
    # Perceptual weights belong to the tokenizer's file alone.
    with pytest.raises(UserError, match=r"lpips\.a is left over"):
        build_model(released | {"lpips.a": torch.zeros(1)}, "it", 4)
    with pytest.raises(UserError, match=r"decoder.conv_out.bias is missing \(1 in all\)\.$"):
        build_tokenizer(without(codec, "decoder.conv_out.bias"), "it")
    with pytest.raises(UserError, match=r"encoder\.extra is left over"):
        build_tokenizer(codec | {"encoder.extra": torch.zeros(1)}, "it")
    for name in ("embedding.weight", "encoder.conv_in.weight"):
        with pytest.raises(UserError, match=f"lacks {name}"):
            build_tokenizer(without(codec, name), "it")
    for name in ("embedder.embedding_tables.1.weight", "head_q.head_module.params.9"):
        with pytest.raises(UserError, match=f"lacks {name}"):
            build_model(without(released, name), "it", 4)


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        (TASKS, 40, r"is \(40, 64\) where \(60, 64\) is needed, a row for each of 60 games"),
        ("task_emb.embedding_tables.0.weight", 26, "60 games"),
        ("pos_emb.weight", 259, r"\(259, 64\).*8 frames' 37 tokens"),
        ("embedder.embedding_tables.0.weight", 6, "18 actions"),
        ("head_rewards.head_module.2.weight", 2, r"\(2, 64\) where \(3, 64\)"),
        ("transformer.blocks.2.attn.key.bias", 32, r"\(32,\) where \(64,\)"),
        ("head_q_target.head_module.params.4", 1, r"\(1, 48, 48\) where \(3, 48, 48\)"),
        ("embedder.embedding_tables.1.weight", 40, r"\(48, 64\) where \(40, 64\).*2 unlike"),
    ],
)
def test_wrong_shapes_are_named(released: Tensors, name: str, rows: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(cut(released, name, rows), "it", 4)


def test_shapes_that_sizes_are_read_from(released: Tensors, codec: Tensors) -> None:
    for state, words in (
        ({"head_q.head_module.params.0": torch.zeros(48, 64)}, r"\(48, 64\), where 3 sizes"),
        ({"head_q.head_module.params.9": torch.zeros(3, 917)}, "917 outputs.*18 actions"),
        ({"embedder.embedding_tables.1.weight": torch.zeros(0, 64)}, r"\(0, 64\)"),
    ):
        with pytest.raises(UserError, match=words):
            build_model(released | state, "it", 4)
    for state, words in (
        ({"encoder.conv_in.weight": torch.zeros(7, 1, 3, 3)}, "7 channels"),
        ({"embedding.weight": torch.zeros(48)}, r"\(48,\), where 2 sizes"),
        ({"embedding.weight": torch.zeros(48, 23)}, r"conv_out.weight is \(24, .* where \(23,"),
    ):
        with pytest.raises(UserError, match=words):
            build_tokenizer(codec | state, "it")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(released: Tensors, codec: Tensors, dtype: torch.dtype) -> None:
    for state, build in ((released, lambda s: build_model(s, "it", 4)), (codec, as_tokenizer)):
        half = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        module = build(half)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.equal(module.codebook, codec["embedding.weight"].to(dtype).float())


def as_tokenizer(state: Tensors) -> torch.nn.Module:
    return build_tokenizer(state, "it")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_other_types_of_numbers_are_refused(released: Tensors, dtype: torch.dtype) -> None:
    name = "head_ends.head_module.0.weight"
    with pytest.raises(UserError, match=rf"{name} is of {dtype}"):
        build_model(released | {name: released[name].to(dtype)}, "it", 4)


def test_other_files_are_told_apart(released: Tensors, codec: Tensors) -> None:
    with pytest.raises(UserError, match=r"holds a tokenizer, not a model.*other way round"):
        build_model(codec, "it", 4)
    with pytest.raises(UserError, match=r"holds a model, not a tokenizer.*other way round"):
        build_tokenizer(released, "it")
    for build in (lambda s: build_model(s, "it", 4), as_tokenizer):
        with pytest.raises(UserError, match=r"another network.*2 tensors.*bert.a"):
            build({"bert.a": torch.zeros(2), "bert.b": torch.zeros(2)})
        with pytest.raises(UserError, match="another network"):
            build({})
    twice = released | {"module.pos_emb.weight": released["pos_emb.weight"]}
    with pytest.raises(UserError, match=r"pos_emb.weight twice"):
        build_model(twice, "it", 4)


@pytest.mark.parametrize("options", [{}, {"codebook_width": 3, "bell_start": 1.0}])
def test_a_skeleton_lacks_nothing_but_weights(options: dict[str, float]) -> None:
    config = WorldActionConfig(TransformerConfig(1, 2, 8), vocabulary=7, q_width=4, **options)
    random = torch.get_rng_state()
    with Skeleton():
        model = WorldActionModel(config)
    assert torch.equal(torch.get_rng_state(), random), "nothing was drawn"
    assert all(p.is_meta for name, p in model.named_parameters() if "q_head.norm" not in name)
    full = WorldActionModel(config)
    assert torch.equal(model.support, full.support)
    assert torch.equal(model.legal_actions, full.legal_actions)
    model.load_state_dict(full.state_dict(), assign=True)
    arguments = torch.zeros(1, 2, 36).long(), torch.zeros(1, 2).long(), torch.tensor([7])
    for ours, theirs in zip(model.eval()(*arguments), full.eval()(*arguments), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
