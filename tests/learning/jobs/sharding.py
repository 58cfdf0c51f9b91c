"""Each process holds its part of a model, between steps and after whatever gathers it; torchrun
runs it."""

from __future__ import annotations

import gc
import time

import torch
from torch import Tensor, nn

from jowa.data.segments import Batch
from jowa.learning.compute import Compute
from jowa.learning.distributed import join
from jowa.learning.objective import LossConfig, Objective
from jowa.learning.optim import OptimizerConfig, build_optimizer
from jowa.learning.sharding import gathered, release, shard
from jowa.learning.step import Step
from jowa.models.patch_tokenizer import PatchTokenizer, PatchTokenizerConfig
from jowa.models.transformer import TransformerConfig
from jowa.models.world_action import WorldActionConfig, WorldActionModel

FLOAT = 4


def batch_of(rows: int) -> Batch:
    """Random tokens of whole segments."""
    shape = (rows, 2)
    return Batch(
        observations=torch.randint(64, (*shape, 36)),
        actions=torch.randint(18, shape),
        rewards=torch.zeros(shape),
        ends=torch.zeros(shape, dtype=torch.bool),
        mask_padding=torch.ones(shape, dtype=torch.bool),
        games=torch.randint(26, (rows,)),
        imagined=torch.zeros(shape, dtype=torch.bool),
        keys=torch.arange(rows),
    )


def bytes_alive() -> int:
    """Of the storages of all float tensors that Python can see."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and thing.is_floating_point():
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    processes = join(device)
    compute = Compute(device, torch.float32, processes, "fsdp")
    torch.manual_seed(0)
    tokenizer = PatchTokenizer(PatchTokenizerConfig(vocabulary=64, code_width=4, hidden=8))
    before = bytes_alive()
    sizes = TransformerConfig(layers=3, heads=2, width=96, dropout=0.1)
    # One member: its first dimension cannot be split.
    model = WorldActionModel(WorldActionConfig(sizes, vocabulary=64, q_width=96, q_members=1))
    weights = sum(parameter.numel() for parameter in model.parameters()) * FLOAT
    buffers = sum(b.nbytes for b in model.buffers() if b.is_floating_point())
    assert bytes_alive() - before >= weights
    shard(model, processes, device)

    def held() -> float:
        """What is alive of the model and its training, in copies of the whole model."""
        return (bytes_alive() - before - buffers) / weights

    def comes_to(low: float, high: float) -> bool:
        """Whether `held` comes to lie within these bounds: threads that send and receive let go of
        what they hold in their own time, on a busy machine seconds later."""
        deadline = time.monotonic() + 60
        while not low <= held() <= high:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def lowest() -> float:
        """The least that is held within two seconds."""
        readings = []
        for _ in range(10):
            readings.append(held())
            time.sleep(0.2)
        return min(readings)

    part = 1 / processes.size
    assert comes_to(part, 1.03 * part), held()
    objective = Objective(tokenizer, model, LossConfig(world_model=1.0, q=1.0)).train()
    objective.freeze_unused()
    optimizer = build_optimizer(objective, OptimizerConfig())
    seen: list[bool] = []

    def see_gradients(*_: object) -> None:
        # The target head has neither gradients nor, later, a state of the optimiser.
        seen.append(bool(seen) or comes_to(1.7 * part, 2.1 * part))

    optimizer.register_step_pre_hook(see_gradients)
    step = Step(objective, optimizer, OptimizerConfig(), compute, 3, 2, compile=False)
    for number in range(3):
        step(batch_of(4), number, number == 2)
    assert seen[0], held()
    assert comes_to(2.5 * part, 3.1 * part), held()
    trained = lowest()
    objective.eval()
    with torch.no_grad():
        objective(batch_of(4))
    release(objective)
    assert comes_to(trained, trained), (held(), trained)
    with gathered(objective):
        assert comes_to(trained + 1.0, trained + 1.1), (held(), trained)
        for parameter in model.parameters():
            assert type(parameter) is nn.Parameter
    assert comes_to(trained, trained), (held(), trained)


if __name__ == "__main__":
    main()
