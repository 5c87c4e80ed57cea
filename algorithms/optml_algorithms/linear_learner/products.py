"""Rows times the weights of all candidates, and back: dense rows through torch, sparse ones without making them dense.

Shapes: D features, B rows of a batch, K = candidates x outputs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 1 << 22  # rows times weights that are looked at together when data is only scored


class DenseRows:
    """float32, normalised in place beforehand. On an accelerator if they fit there, else a batch at a time goes there."""

    def __init__(self, features: Any, device: "torch.device"):
        import torch

        self._device = device
        rows = torch.from_numpy(features)
        fits = device.type == "cuda" and rows.nbytes < 0.6 * torch.cuda.mem_get_info(device)[0]
        self._rows = rows.to(device) if fits else rows
        self._buffer = self._rows.new_empty(0)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, index_B: "torch.Tensor") -> "DenseBatch":
        """Good until the next one is asked for: its memory is used again."""
        import torch

        shape = (len(index_B), self._rows.shape[1])
        if self._buffer.numel() < shape[0] * shape[1]:
            self._buffer = self._rows.new_empty(shape[0] * shape[1])
        found = self._buffer[: shape[0] * shape[1]].view(shape)
        torch.index_select(self._rows, 0, index_B.to(self._rows.device), out=found)
        return DenseBatch(found.to(self._device))

    def part(self, begin: int, end: int) -> "DenseBatch":
        return DenseBatch(self._rows[begin:end].to(self._device))


class DenseBatch:
    def __init__(self, rows_BD: "torch.Tensor"):
        self._rows_BD = rows_BD

    def scores(self, weights_DK: "torch.Tensor", bias_K: "torch.Tensor") -> "torch.Tensor":
        import torch

        return torch.addmm(bias_K, self._rows_BD, weights_DK)

    def gradient(self, derivatives_BK: "torch.Tensor", out_DK: "torch.Tensor") -> None:
        import torch

        torch.mm(self._rows_BD.t(), derivatives_BK, out=out_DK)


class SparseRows:
    """A CSR matrix as it was read; that features are shifted and scaled is worked into the products instead.

    (x - mean) / scale times w is x times (w / scale), less mean times (w / scale): the zeros stay zeros.
    scipy does it: on a processor it is seven times as fast as torch's sparse product, seventy times backwards.
    """

    def __init__(self, features: Any, mean: Any, scale: Any):
        import torch

        self._rows = features
        self._mean_1D = torch.from_numpy(mean.astype("f4"))[None, :] if mean.any() else None
        self._inverse_D1 = torch.from_numpy((1 / scale).astype("f4"))[:, None] if (scale != 1).any() else None

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    def batch(self, index_B: "torch.Tensor") -> "SparseBatch":
        return SparseBatch(self._rows[index_B.numpy()], self._mean_1D, self._inverse_D1)

    def part(self, begin: int, end: int) -> "SparseBatch":
        return SparseBatch(self._rows[begin:end], self._mean_1D, self._inverse_D1)


class SparseBatch:
    def __init__(self, rows: Any, mean_1D: "torch.Tensor | None", inverse_D1: "torch.Tensor | None"):
        self._rows, self._mean_1D, self._inverse_D1 = rows, mean_1D, inverse_D1

    def scores(self, weights_DK: "torch.Tensor", bias_K: "torch.Tensor") -> "torch.Tensor":
        import torch

        scaled_DK = weights_DK if self._inverse_D1 is None else weights_DK * self._inverse_D1
        if self._mean_1D is not None:
            bias_K = bias_K - (self._mean_1D @ scaled_DK)[0]
        return torch.from_numpy(self._rows @ scaled_DK.numpy()).add_(bias_K)

    def gradient(self, derivatives_BK: "torch.Tensor", out_DK: "torch.Tensor") -> None:
        import torch

        out_DK.copy_(torch.from_numpy(self._rows.T @ derivatives_BK.numpy()))
        if self._mean_1D is not None:
            out_DK.sub_(self._mean_1D.t() * derivatives_BK.sum(0))
        if self._inverse_D1 is not None:
            out_DK.mul_(self._inverse_D1)


Rows = DenseRows | SparseRows
