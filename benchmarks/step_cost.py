"""A DualCL step against two stock nnU-Net steps (as many samples) and against the bare dual-decoder network, and what
its options for less memory save and cost.

    python benchmarks/step_cost.py [-device cpu|cuda] [--rounds 15] [--patch 24 32 24] [--features 12 24 48] [--batch 2]
        [--compile] [--variants stock_step bare_network dualcl] [-o FILE]

The variants take turns in each round, and ratios are taken within a round, so slow phases of a shared machine hit all
of them. Peak memory is what torch allocates, not what the process occupies. Under ``split_batch`` a step of stock
nnU-Net has as many patches as both halves of ours together: ``stock_twice_the_batch``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from _common import write
from _trainers import build, nnunet_folder
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.profiler import ProfilerActivity, profile

from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.data.paired_loader import patches_of
from nnunet_dualcl.networks import DualOutput
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

OPTIONS = {
    "dualcl": {},
    "low_memory": {"low_memory": True},
    "decoder_checkpointing": {"decoder_checkpointing": True},
    "both_options": {"low_memory": True, "decoder_checkpointing": True},
}
"""Variant -> configuration."""

_MEASURED = ("stock_step", "two_stock_steps", "stock_twice_the_batch", "bare_half", "bare_network", *OPTIONS)
"""Variants whose memory is measured."""

_WARM_UP = 3
"""Steps before the clock runs: kernels are chosen, code is compiled."""


def batch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Noise with blocky labels, on the device, as the loaders would hand it over."""
    generator = torch.Generator().manual_seed(0)
    blocks = (arguments.batch, 1, *(size // 4 for size in arguments.patch))
    target = torch.randint(arguments.classes, blocks, generator=generator)
    target = torch.nn.functional.interpolate(target.float(), size=arguments.patch, mode="nearest")
    levels = [
        torch.nn.functional.interpolate(target, scale_factor=0.5**level, mode="nearest")
        for level in range(len(arguments.features) - 1)
    ]
    half = [torch.randn(arguments.batch, 1, *arguments.patch, generator=generator) for _ in range(2)]
    keys = [f"case_{index}" for index in range(arguments.batch)]
    return {
        "data": torch.cat((half[0], half[1], half[1])).to(arguments.device),
        "target": [level.short().to(arguments.device) for level in levels],
        "keys": keys,
        "unlabeled_keys": keys,
    }


def bare_step(trainer: DualCLTrainer, data: torch.Tensor) -> None:
    """Forward and backward of both decoders on all samples and the optimizer, without any loss worth the name."""
    trainer.optimizer.zero_grad(set_to_none=True)
    cuda = trainer.device.type == "cuda"
    with torch.autocast("cuda") if cuda else contextlib.nullcontext():
        output = trainer.network(data)
        assert isinstance(output, DualOutput)
        loss = sum(level.float().mean() for branch in output[:2] for level in branch)
    scaler = trainer.grad_scaler
    if scaler is not None:
        scaler.scale(loss).backward()
        scaler.unscale_(trainer.optimizer)
    else:
        loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), 12)
    if scaler is not None:
        scaler.step(trainer.optimizer)
        scaler.update()
    else:
        trainer.optimizer.step()
    loss.item()


def teach(trainer: DualCLTrainer, sample: dict[str, Any]) -> torch.Tensor:
    """What the teacher adds: a forward pass of the unlabeled half, without gradient."""
    with torch.autocast("cuda") if trainer.device.type == "cuda" else contextlib.nullcontext():
        return trainer.teacher.logits(patches_of(sample).weak)


def variants(arguments: argparse.Namespace, chosen: Collection[str]) -> dict[str, Callable[[], object]]:
    """Name -> one step, of the chosen ones; no other trainer is built."""
    sample = batch(arguments)
    labeled = patches_of(sample).labeled
    both = sample["data"][: 2 * arguments.batch]
    stock_sample = {**sample, "data": labeled}
    steps: dict[str, Callable[[], object]] = {}
    # a trainer sees batches of one size, as in a training: torch.compile would write other code for changing ones
    if "stock_twice_the_batch" in chosen:
        larger = build(nnUNetTrainer, arguments)
        twice = {"data": both, "target": [torch.cat((level, level)) for level in sample["target"]]}
        steps["stock_twice_the_batch"] = lambda: larger.train_step(dict(twice))
    if not {"stock_step", "two_stock_steps"}.isdisjoint(chosen):
        stock = build(nnUNetTrainer, arguments)
        steps["stock_step"] = lambda: stock.train_step(dict(stock_sample))
        steps["two_stock_steps"] = lambda: [stock.train_step(dict(stock_sample)) for _ in range(2)]
    if "bare_half" in chosen:
        half = build(DualCLTrainer, arguments)
        steps["bare_half"] = lambda: bare_step(half, labeled)
    if not {"bare_network", "network_and_teacher"}.isdisjoint(chosen):
        bare = build(DualCLTrainer, arguments)
        steps["bare_network"] = lambda: bare_step(bare, both)
        steps["network_and_teacher"] = lambda: (teach(bare, sample), bare_step(bare, both))
    for name, config in OPTIONS.items():
        if name in chosen:
            trainer = build(DualCLTrainer, arguments, **config)
            steps[name] = lambda trainer=trainer: trainer.train_step(dict(sample))
    return {name: step for name, step in steps.items() if name in chosen}


def timed(step: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's queue emptied before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_times(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each variant, and medians of the ratios within rounds."""
    steps = variants(arguments, arguments.variants)
    for step in steps.values():
        for _ in range(_WARM_UP):
            step()
    rounds = [{name: timed(step, arguments.device) for name, step in steps.items()} for _ in range(arguments.rounds)]
    ratios = {
        f"{name} / {other}": statistics.median(row[name] / row[other] for row in rounds)
        for name in OPTIONS
        for other in ("stock_step", "stock_twice_the_batch", "two_stock_steps", "bare_network", "network_and_teacher")
        if name in steps and other in steps
    }
    return {"seconds": {name: statistics.median(row[name] for row in rounds) for name in steps}, "ratios": ratios}


def peak_memory(arguments: argparse.Namespace, variant: str) -> float:
    """MiB that two steps allocate beyond what was there before: activations, gradients, optimizer state."""
    step = variants(arguments, [variant])[variant]
    gc.collect()
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**20 - before
    # every allocation of torch, in order: what the process occupies also depends on the allocator of the system
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(), step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(changes)) / 2**20


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--patch", type=int, nargs=3, default=[24, 32, 24])
    parser.add_argument("--features", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="labeled patches, and as many unlabeled ones")
    parser.add_argument("--compile", action="store_true", help="torch.compile, which nnU-Net turns on on a GPU")
    names = (*_MEASURED, "network_and_teacher")
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="those to measure; default: all")
    parser.add_argument("-o", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    config = DualCLConfig()
    os.environ["nnUNet_compile"] = str(arguments.compile)
    if arguments.compile:  # in a training, each of these networks would be the only one, with batches of one size
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64
    if arguments.device == "cuda":
        torch.backends.cudnn.benchmark = True  # as in nnU-Net's command
    with nnunet_folder():
        result = measure_times(arguments)
        memory = {variant: peak_memory(arguments, variant) for variant in _MEASURED if variant in arguments.variants}
    result["peak_memory_mib"] = memory
    result["ratios"].update(
        {
            f"memory {name} / {other}": memory[name] / memory[other]
            for name in OPTIONS
            for other in ("stock_step", "stock_twice_the_batch", "bare_half", "bare_network")
            if name in memory and other in memory
        }
    )
    setting = {key: value for key, value in vars(arguments).items() if key != "o"}
    write(arguments.o, {**result, "setting": {**setting, "config": config.to_mapping()}})


if __name__ == "__main__":
    main()
