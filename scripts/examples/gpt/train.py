"""A small GPT on text that Python ships, trained by as many processes as there are: data parallel, in a pipeline, or both.

    optml train --entry-point train.py --source-dir scripts/examples/gpt --instance-count 2 --distribution torchrun
    ... -p pipe=2                                       two stages instead, one on each host
    torchrun --nproc-per-node 2 scripts/examples/gpt/train.py --checkpoint-dir checkpoints

Stop it or kill it at any moment; with the same checkpoints it goes on, and its losses are those of a run that nobody disturbed.
"""

import argparse
import os
import pydoc_data.topics
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from optml_toolkit import distributed

CONTEXT, WIDTH, HEADS, DEPTH = 64, 64, 4, 4


class Text(Dataset):
    """Overlapping pieces of Python's own reference manual, letter by letter; the targets are the next letters."""

    def __init__(self, pieces: int):
        text = "".join(pydoc_data.topics.topics.values())
        self.letters = sorted(set(text))
        number = {letter: index for index, letter in enumerate(self.letters)}
        self.numbers_N = torch.tensor([number[letter] for letter in text])
        self.pieces = pieces

    def __len__(self) -> int:
        return self.pieces

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        begin = index * 37 % (len(self.numbers_N) - CONTEXT - 1)
        piece = self.numbers_N[begin : begin + CONTEXT + 1]
        return piece[:-1], piece[1:]


class Embedding(nn.Module):
    def __init__(self, letters: int):
        super().__init__()
        self.token, self.place = nn.Embedding(letters, WIDTH), nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.token(tokens_BT) + self.place.weight[: tokens_BT.shape[1]]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_layers = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x_BTW: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x_BTW.shape
        parts = self.to_qkv(self.before_attention(x_BTW)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTW = x_BTW + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x_BTW + self.layers(self.before_layers(x_BTW))


def loss_of(scores_BTL: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores_BTL.flatten(0, 1), targets_BT.flatten())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pipe", type=int, default=1, help="stages, each in a process of its own")
    parser.add_argument("--schedule", default="1f1b")
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--checkpoint-dir", help="by default the job's")
    parser.add_argument("--model-dir", default=os.environ.get("SM_MODEL_DIR", "."))
    options = parser.parse_args()

    run = distributed.init(pipe=options.pipe)
    text = Text(pieces=20_000)
    letters = len(text.letters)
    blocks = [Block() for _ in range(DEPTH)]
    model = nn.Sequential(Embedding(letters), *blocks, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters))
    data = distributed.Batches(run, text, batch_size=options.batch_size, drop_last=True)
    if options.pipe > 1:
        pipeline = distributed.Pipeline(
            run, model, loss=loss_of, micro_batches=options.micro_batches, schedule=options.schedule
        )
        model = pipeline.module
    else:
        pipeline = None
        model = distributed.data_parallel(run, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    training = distributed.Training(
        run, model, optimizer, data, checkpoint_dir=options.checkpoint_dir, save_every_steps=options.save_every
    )
    for tokens_BT, targets_BT in training.batches(steps=options.steps):
        if pipeline is not None:
            training.step_pipeline(pipeline, tokens_BT, targets_BT)
        else:
            tokens_BT, targets_BT = tokens_BT.to(run.device), targets_BT.to(run.device)
            training.step(loss_of(model(tokens_BT), targets_BT))
        training.report(tokens=tokens_BT.numel())

    if pipeline is not None:
        bubble = pipeline.bubble()
        weights = pipeline.full_state_dict()
        if run.first:
            print(f"bubble={bubble['measured'] or 0:.3f} formula={bubble['formula']:.3f}")
    else:
        weights = model.module.state_dict()
    if run.first:
        torch.save(weights, Path(options.model_dir) / "model.pt")
        print(f"saved {sum(value.numel() for value in weights.values())} numbers")


if __name__ == "__main__":
    main()
