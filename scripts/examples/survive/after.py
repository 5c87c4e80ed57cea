"""Handwritten digits, any number of processes; whatever interrupts it, it goes on as if nothing had happened."""

import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from optml_toolkit import distributed

digits = load_digits()
images, labels = torch.tensor(digits.images / 16.0).float().flatten(1), torch.tensor(digits.target)
run = distributed.init(seed=0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
model = distributed.data_parallel(run, model)
data = distributed.Batches(run, TensorDataset(images, labels), batch_size=48)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
training = distributed.Training(run, model, optimizer, data)
for batch_images, batch_labels in training.batches(epochs=20):
    loss = nn.functional.cross_entropy(model(batch_images.to(run.device)), batch_labels.to(run.device))
    training.step(loss)
if run.first:
    torch.save(model.module.state_dict(), Path(os.environ.get("SM_MODEL_DIR", "."), "model.pt"))
