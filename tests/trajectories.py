"""Optimizers once more, in float64 and numpy alone, and a small model whose gradients float64 can have too.

Each reference is written from its paper's algorithm; nothing of ours, of torch's or of timm's optimizers is in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.engines._slices import WEIGHT
from vit_dist.models._base import ImageModel

SIDE, CLASSES, BATCH, STEPS, RATE = 14, 5, 12, 50, 2e-3
TOLERANCE = 1e-5
Arrays = dict[str, Any]


class Layer(nn.Module):
    """Normalised, widened, added; the width to the second side is odd, so that two ranks have unequal shares."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 13), nn.Linear(13, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.tanh(self.fc1(self.norm(x))))


class Small(ImageModel):
    """Patches, positions, two blocks, mean, head: [B, 3, 14, 14] -> [B, 5], in any dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pos_embed = nn.Conv2d(3, 8, 7, stride=7), nn.Parameter(torch.randn(1, 4, 8) * 0.1)
        self.blocks = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT + self.pos_embed
        return self.norm(self.run_blocks(self.blocks, x)).mean(1)


def decays(name: str) -> bool:
    """Kernels: matrices and convolutions."""
    return name.endswith("weight") and "norm" not in name


def hidden(name: str) -> bool:
    """Matrices of blocks."""
    return name.startswith("blocks") and decays(name)


def layer(name: str) -> int:
    """BEiT's layers: stem and positions, the two blocks, what is behind them."""
    if name.startswith(("stem", "pos_embed")):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3


Update = Callable[[str, Any, Any, Arrays, int, float], Any]
"""(name, weight, gradient, state of the weight, step from 1, rate) -> the new weight."""


def adamw(wd: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Update:
    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        m, v = _means(state, g, b1, b2)
        w = w - lr * wd * w if decays(name) else w
        return w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return update


def adam(wd: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Update:
    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        m, v = _means(state, g + wd * w if decays(name) else g, b1, b2)
        return w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return update


def sgd(wd: float, momentum: float = 0.9) -> Update:
    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        g = g + wd * w if decays(name) else g
        state["b"] = momentum * state.get("b", np.zeros_like(w)) + g
        return w - lr * state["b"]

    return update


def lion(wd: float, b1: float = 0.9, b2: float = 0.99) -> Update:
    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        m = state.get("m", np.zeros_like(w))
        state["m"] = b2 * m + (1 - b2) * g
        return w - lr * (np.sign(b1 * m + (1 - b1) * g) + (wd if decays(name) else 0) * w)

    return update


def lamb(wd: float, *, all_adapt: bool = True, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> Update:
    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        m, v = _means(state, g, b1, b2)
        r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + (wd if decays(name) else 0) * w
        norms = np.linalg.norm(w), np.linalg.norm(r)
        adapts = min(norms) > 0 and (all_adapt or decays(name))
        return w - lr * (norms[0] / norms[1] if adapts else 1) * r

    return update


def adafactor(wd: float, least: int, b1: float = 0.9, power: float = 0.8, cap: float = 0.999) -> Update:
    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        b2, square = min(cap, 1 - t**-power), g**2 + 1e-30
        order = np.argsort(w.shape, kind="stable")
        if w.ndim > 1 and w.shape[order[-2]] >= least:
            short, long = order[-2:]
            row = b2 * state.get("row", 0.0) + (1 - b2) * square.mean(long, keepdims=True)
            column = b2 * state.get("column", 0.0) + (1 - b2) * square.mean(short, keepdims=True)
            state["row"], state["column"] = row, column
            v = row * column / row.mean(short, keepdims=True)
        else:
            state["v"] = v = b2 * state.get("v", 0.0) + (1 - b2) * square
        state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g / np.sqrt(v)
        return w - lr * (state["m"] + (wd if decays(name) else 0) * w)

    return update


def muon(wd: float, *, rms: bool = True, ratio: float = 1.0, mu: float = 0.95) -> Update:
    others = adamw(wd)

    def update(name: str, w: Any, g: Any, state: Arrays, t: int, lr: float) -> Any:
        if not hidden(name):
            return others(name, w, g, state, t, lr * ratio)
        state["B"] = mu * state.get("B", np.zeros_like(w)) + g
        x = g + mu * state["B"]
        x = x / np.linalg.norm(x)
        for _ in range(5):
            s = x @ x.T
            x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
        m, n = w.shape
        scale = 0.2 * max(m, n) ** 0.5 if rms else max(1, m / n) ** 0.5
        return w - lr * wd * w - lr * scale * x

    return update


def _means(state: Arrays, g: Any, b1: float, b2: float) -> tuple[Any, Any]:
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    return state["m"], state["v"]


OPTIMIZERS: dict[str, tuple[dict[str, Any], Update]] = {
    "adamw": ({"name": "adamw", "weight_decay": 0.3}, adamw(0.3)),
    "adam": ({"name": "adam", "weight_decay": 0.3}, adam(0.3)),
    "sgd": ({"name": "sgd", "weight_decay": 0.3}, sgd(0.3)),
    "lion": ({"name": "lion", "weight_decay": 0.3, "betas": [0.8, 0.95]}, lion(0.3, 0.8, 0.95)),
    "lamb": ({"name": "lamb", "weight_decay": 0.3}, lamb(0.3)),
    "lamb-decayed": ({"name": "lamb", "weight_decay": 0.3, "adapt": "decayed"}, lamb(0.3, all_adapt=False)),
    "adafactor": (
        {"name": "adafactor", "weight_decay": 0.3, "min_factored": 4, "momentum_dtype": "fp32"},
        adafactor(0.3, 4),
    ),
    "adafactor-cap": (
        {"name": "adafactor", "weight_decay": 0.0, "momentum_dtype": "fp32", "beta2_cap": 0.9, "min_factored": 4},
        adafactor(0.0, 4, cap=0.9),
    ),
    "muon": ({"name": "muon", "weight_decay": 0.3, "orthogonal_dtype": "fp32"}, muon(0.3)),
    "muon-shape": (
        {"name": "muon", "weight_decay": 0.1, "orthogonal_dtype": "fp32", "scale": "shape", "adamw_lr": RATE / 4},
        muon(0.1, rms=False, ratio=0.25),
    ),
}
"""By a name: the section of a recipe, and what it is to compute."""


def batch(step: int) -> tuple[Tensor, Tensor]:
    """uint8 images and one-hot targets."""
    draw = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=draw)
    images = torch.randint(0, 160, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=draw)
    images += (labels * 15).to(torch.uint8).view(-1, 1, 1, 1)
    return images, functional.one_hot(labels, CLASSES).float()


def rate(step: int) -> float:
    """It falls, so that a rate that is not set is seen."""
    return RATE * (1 - step / (2 * STEPS))


def small() -> Small:
    """The weights of one seed."""
    torch.manual_seed(0)
    model = Small()
    nn.init.normal_(model.head.weight, std=0.5)
    return model


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, steep enough that clipping at 1 has work."""
    return 4 * functional.cross_entropy(logits, targets)


def reference(
    update: Update, clip: float | None, layer_decay: float = 1.0, *, per_block: bool = False, steps: int = STEPS
) -> Iterator[dict[str, Any]]:
    """Weights in float64 after each step; gradients by autograd in float64."""
    model = small().double()
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    states: dict[str, Arrays] = {name: {} for name in weights}
    for step in range(steps):
        images, targets = batch(step)
        model.zero_grad()
        loss(model(images.double() / 127.5 - 1), targets.double()).backward()
        gradients: Arrays = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
        for part in {layer(n) if per_block else 0 for n in weights} if clip is not None else ():
            members = [n for n in weights if not per_block or layer(n) == part]
            norm = np.sqrt(sum((gradients[n] ** 2).sum() for n in members))
            gradients |= {n: gradients[n] / max(1.0, norm / clip) for n in members}
        for name, p in model.named_parameters():
            scaled = rate(step) * layer_decay ** (3 - layer(name))
            weights[name] = update(name, weights[name], gradients[name], states[name], step + 1, scaled)
            p.data = torch.from_numpy(weights[name])
        yield copy.copy(weights)


def recipe(optim: Mapping[str, Any], engine: Mapping[str, Any], **settings: Any) -> Recipe:
    """A recipe with an optimizer and an engine; its model is not used."""
    return resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": "fp32",
            "model": "vit-test",
            "data": {"num_classes": CLASSES, "image_size": 28},
            "optim": {"lr": RATE, **optim, **settings},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": dict(engine),
        }
    )


def engine_of(
    name: str, engine: Mapping[str, Any], world: World | None = None, accumulation: int = 1, **settings: Any
) -> Engine:
    """An engine over the small model; `settings` are of the optimizer."""
    world, model, made = world or World(), small(), recipe(OPTIMIZERS[name][0], engine, **settings)
    optim: Any = made.optim
    micro = BATCH // world.size // accumulation
    inputs = EngineInputs(
        model,
        optim.over_layers(model),
        loss,
        world,
        torch.device("cpu"),
        "fp32",
        optim.clip,
        micro,
        accumulation,
        clip_layers=optim.clipped_layers(model),
    )
    built: Engine = made.engine.build(inputs)  # type: ignore[attr-defined]
    return built


def train(engine: Engine, world: World | None = None, accumulation: int = 1, begin: int = 0, end: int = STEPS) -> None:
    """Steps of an engine on this rank's share of each batch."""
    world = world or World()
    for step in range(begin, end):
        images, targets = (tensor[world.rank :: world.size] for tensor in batch(step))
        micro = len(images) // accumulation
        pieces = list(zip(images.split(micro), targets.split(micro), strict=True))
        assert engine.train_step(pieces, rate(step)).read().applied


def furthest(engine: Engine, expected: Mapping[str, Any]) -> float:
    """The greatest difference of any weight on this rank, over the greatest number of that weight."""
    found = 0.0
    for piece in engine.state().slices:
        if piece.kind == WEIGHT:
            whole = expected[piece.name].reshape(-1)
            off = np.abs(piece.data.double().numpy() - whole[piece.start : piece.start + len(piece.data)]).max()
            found = max(found, float(off / np.abs(whole).max()))
    return found
