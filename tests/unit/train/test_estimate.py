"""How much memory training takes, by formula and counted; how fast it may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpsgen.presets import BF16
from fpsgen.target import Target
from fpsgen.train import data, estimate
from fpsgen.train.data import Data, Origin
from fpsgen.train.loop import TrainJob, train
from fpsgen.train.settings import TrainSettings
from fpsgen.wan.config import SHAPES, WAN_1_3B, WAN_14B, WanConfig
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.models import absent, open_folder
from tests.tools.training_data import sample

SMALL = WanConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=3, text_dim=40, freq_dim=32)


class Counter(TorchDispatchMode):
    """The most bytes that all tensors on a CPU had at once. Views share their storage, which counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self.bytes += storage.nbytes()
        if self.bytes > self.most:
            for key in [key for key, (storage, _) in self.alive.items() if storage.expired()]:
                self.bytes -= self.alive.pop(key)[1]
            self.most = max(self.most, self.bytes)
        return out


@pytest.mark.parametrize("config", [SMALL, WAN_1_3B, WAN_14B, SHAPES["1.3b-vsa"]])
def test_parameters_are_counted_as_the_transformer_has_them(config: WanConfig) -> None:
    with torch.device("meta"):
        transformer = WanTransformer(config)
    assert estimate.parameters(config) == sum(own.numel() for own in transformer.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": 8},
        {"recompute": True},
        {"micro": 2, "batch": 4},
        {"distil": 0.0, "flow": 1.0, "ema": 0.0},
        {"guided": True},
    ],
)
def test_the_formula_is_what_a_run_takes(pocket_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Dense attention, whose memory is the same on every device. Within 15 %: the formula does not know the batch
    itself, nor which temporary tensors an operation makes; in a model this small they are a tenth."""
    model = open_folder(pocket_folder, "small")
    index = data.index_of(model, model.defaults, by="hand")
    samples = [(Origin(f"prompt {number}"), sample(number)) for number in range(4)]
    data.write(tmp_path / "data", index, sample(9).texts[0], samples)
    own = TrainSettings(steps=3, warm_up=0, checks=0).override(**{"batch": 2, **settings})
    target = Target(torch.device("cpu"), torch.float32, torch.bfloat16)
    job = TrainJob(model, Data.open(tmp_path / "data"), BF16, model.defaults, own, target, tmp_path)
    with Counter() as counter:
        train(job, lambda event: None)
    tokens = model.tiles(model.defaults.latent_shape).tokens
    found = estimate.memory(model.config, own, tokens, itemsize=4, approximate=False)
    assert found.total == pytest.approx(counter.most, rel=0.15)


def test_cards_share_what_is_kept_but_not_what_is_computed() -> None:
    one, eight = (estimate.memory(WAN_14B, TrainSettings(), 32_760, cards) for cards in (1, 8))
    for part in ("weights", "gradients", "optimizer", "average", "teacher"):
        assert getattr(one, part) == pytest.approx(8 * getattr(eight, part), rel=1e-6)
    assert one.activations == eight.activations
    assert eight.whole > one.whole  # layers that are made whole for a moment


def test_what_saves_memory_and_what_takes_time() -> None:
    tokens, usual = 32_760, TrainSettings()
    memory = {name: estimate.memory(WAN_14B, own, tokens).total for name, own in _ways(usual).items()}
    time = {name: estimate.flops(WAN_14B, own, tokens, 0.3) for name, own in _ways(usual).items()}
    assert memory["recompute"] < memory["lora"] < memory["full"]
    assert memory["flow"] < memory["full"]  # which needs no teacher
    assert time["lora"] < time["full"] < time["recompute"]
    assert time["flow"] < time["full"]
    assert estimate.flops(WAN_14B, usual, tokens, 1.0) > time["full"]


def _ways(usual: TrainSettings) -> dict[str, TrainSettings]:
    return {
        "full": usual,
        "lora": replace(usual, lora=64),
        "recompute": replace(usual, recompute=True),
        "flow": replace(usual, flow=1.0, distil=0.0),
    }


def test_training_costs_three_forward_passes_and_a_teacher_one_more() -> None:
    """By the count of the forward pass that calibration has: 2 for each weight and token, 4 D for each pair."""
    tokens = 1000
    forward = 2.0 * WAN_14B.weights_per_token * tokens
    forward += 4.0 * WAN_14B.dim * WAN_14B.num_layers * tokens * (tokens + 512)
    flow = TrainSettings(flow=1.0, distil=0.0)
    assert estimate.flops(WAN_14B, flow, tokens, 1.0) == pytest.approx(3 * forward)
    assert estimate.flops(WAN_14B, TrainSettings(), tokens, 1.0) == pytest.approx(4 * forward)
    assert estimate.flops(WAN_14B, replace(flow, recompute=True), tokens, 1.0) == pytest.approx(4 * forward)
    assert estimate.flops(WAN_14B, TrainSettings(guided=True), tokens, 1.0) == pytest.approx(8 * forward)


def test_a_model_that_is_not_on_this_disk() -> None:
    model = absent("14b")
    video = model.defaults
    one, eight = (estimate.estimates(model, "fast", TrainSettings(), [video], cards) for cards in (1, 8))
    assert [own.recompute for own in one] == [False, True]
    assert one[0].tokens == 75_600
    assert eight[0].tokens_per_second == pytest.approx(8 * one[0].tokens_per_second)
    most = estimate.estimates(model, "fast", TrainSettings(), [video], cards=64)
    assert most[0].tokens_per_second == eight[0].tokens_per_second  # a batch of 8 keeps 8 cards busy
    assert one[0].seconds == pytest.approx(8 * one[0].tokens / one[0].tokens_per_second)  # a batch of 8
