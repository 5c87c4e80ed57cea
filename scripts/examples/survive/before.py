"""Handwritten digits, one process; whatever interrupts it, it begins anew."""

import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

digits = load_digits()
images, labels = torch.tensor(digits.images / 16.0).float().flatten(1), torch.tensor(digits.target)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
data = DataLoader(TensorDataset(images, labels), batch_size=48, shuffle=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(20):
    for batch_images, batch_labels in data:
        loss = nn.functional.cross_entropy(model(batch_images), batch_labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch={epoch} loss={loss.item():.4f}")
torch.save(model.state_dict(), Path(os.environ.get("SM_MODEL_DIR", "."), "model.pt"))
