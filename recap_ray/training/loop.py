"""The training loop of one worker among several: the same steps and, up to rounding and dropout, the same losses
however many there are.

    O/checkpoint.safetensors   weights that change, AdamW's moments, and where the loop is: it goes on from there
    O/best.safetensors         the weights of the epoch that validated best so far
    O/log.jsonl                a line a step and a line an epoch, which the driver shows

Order, noise and dropout of a step follow from the seed and the step, so that a loop that was killed goes on along the
same losses. Workers add up gradients of sums of losses, each divided by the tokens of the whole batch, which they count
together: without dropout what is learned depends on how a batch is cut by rounding alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from recap_ray.models.trainable import Batch, Trainable
from recap_ray.storage.paths import commit
from recap_ray.training.batches import Batches
from recap_ray.training.examples import epoch_batches, own_share

CHECKPOINT, BEST, LOG = "checkpoint.safetensors", "best.safetensors", "log.jsonl"
LOG_EVERY = 10  # steps: a GPU is waited for only then
CHECKPOINT_SECONDS = 120.0
MAX_GRAD_NORM = 1.0
SAMPLES = 3
SAMPLE_TOKENS = 40


@dataclass(frozen=True)
class Hyperparameters:
    """How it is trained; what the losses depend on, and `micro_batch`, on which only memory does."""

    epochs: int
    batch_size: int  # of all workers together
    micro_batch: int  # captions that a worker computes at once
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    seed: int
    bfloat16: bool


@dataclass
class TrainState:
    """Where the loop is."""

    step: int = 0  # steps done
    best_loss: float = math.inf
    best_epoch: int = 0
    cpu_seconds: float = 0.0  # of all workers, in all sessions
    seconds: float = 0.0


def total_steps(captions: int, batch_size: int, epochs: int = 1) -> int:
    """Of all epochs together."""
    return epochs * -(-captions // batch_size)


def learning_rate_share(step: int, warmup: int, total: int) -> float:
    """Of the peak: rises linearly for `warmup` steps, then falls linearly, to nothing after `total` (ClipCap's)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total - step) / max(1, total - warmup))


class Loop:
    """One worker's loop; all workers run it in step."""

    def __init__(
        self, model: Trainable, batches: Batches, numbers: tuple[np.ndarray, np.ndarray], given: Hyperparameters,
        folder: Path, device: torch.device, decode: Callable[[list[int]], str],
    ):  # fmt: skip
        self.model, self.batches, self.given, self.folder, self.device = (
            model.to(device),
            batches,
            given,
            folder,
            device,
        )
        self.training, self.validation = numbers
        self.decode, self.end = decode, batches.texts.end
        self.rank, self.workers = (distributed.get_rank(), distributed.get_world_size()) if _grouped() else (0, 1)
        self.per_epoch = total_steps(len(self.training), given.batch_size)
        self.total = self.per_epoch * given.epochs
        self.weights = model.trainable_parameters()
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=given.learning_rate, weight_decay=given.weight_decay, fused=device.type == "cuda"
        )
        self.state = TrainState()
        self.waiting: list[tuple[int, float, torch.Tensor]] = []  # losses not yet fetched from the device

    def run(self) -> TrainState:
        """Trains to the end, from the checkpoint if there is one; gives where it ended."""
        self._resume()
        wrapped = DistributedDataParallel(self.model) if self.workers > 1 else self.model
        self.saved = time.monotonic()
        while self.state.step < self.total:
            epoch = self.state.step // self.per_epoch
            done = self.state.step % self.per_epoch
            batches = list(epoch_batches(self.training, self.given.batch_size, self.given.seed, epoch))
            for numbers in batches[done:]:
                self._step(wrapped, numbers)
                if self.state.step % self.per_epoch and self._agree(time.monotonic() - self.saved):
                    self._checkpoint()
            self._fetch_losses()
            self._validate(epoch + 1)
            self._checkpoint()
        return self.state

    # --- a step ---

    def _step(self, model: Any, numbers: np.ndarray) -> None:
        step = self.state.step
        began, cpu = time.monotonic(), time.process_time()
        torch.manual_seed(self.given.seed * 1_000_003 + step * 1009 + self.rank)  # dropout's
        self.model.train()
        rate = self.given.learning_rate * learning_rate_share(step, self.given.warmup_steps, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch, tokens = self._batch(numbers, [self.given.seed, 1, step])
        total = torch.zeros((), device=self.device)
        pieces = list(_pieces(batch, self.given.micro_batch))
        for i, piece in enumerate(pieces):
            last = i + 1 == len(pieces)
            if self.workers > 1:
                model.require_backward_grad_sync = last
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.given.bfloat16):
                loss = model(piece.to(self.device)) / tokens
            (loss * self.workers).backward()  # DistributedDataParallel takes the mean of the workers' gradients
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.waiting.append((self.state.step, rate, total))
        if len(self.waiting) == LOG_EVERY:
            self._fetch_losses()
        self.state.seconds += time.monotonic() - began
        self.state.cpu_seconds += time.process_time() - cpu

    def _batch(self, numbers: np.ndarray, seeds: list[int]) -> tuple[Batch, float]:
        """Return this worker's rows of a batch, and how many tokens the rows of all workers predict."""
        rows = own_share(numbers, self.rank, self.workers)
        batch = self.batches.make(numbers, rows, np.random.default_rng(seeds))
        tokens = self._sum(batch.loss_mask.sum().double()) if self.workers > 1 else batch.loss_mask.sum()
        return batch, float(tokens)

    def _fetch_losses(self) -> None:
        """Wait for the device, and writes the losses of the last steps down."""
        if not self.waiting:
            return
        losses = self._sum(torch.stack([loss for _, _, loss in self.waiting]).double()).tolist()
        lines = [{"step": step, "loss": loss, "rate": rate} for (step, rate, _), loss in zip(self.waiting, losses)]
        self._log(*lines)
        self.waiting.clear()

    # --- an epoch ---

    @torch.inference_mode()
    def _validate(self, epoch: int) -> None:
        """Write down the mean loss a token of the validation captions, and what is written for some of them."""
        began, cpu = time.monotonic(), time.process_time()
        self.model.eval()
        loss, tokens = torch.zeros((), dtype=torch.float64), 0.0
        for start in range(0, len(self.validation), self.given.batch_size):
            numbers = self.validation[start : start + self.given.batch_size]
            batch, count = self._batch(numbers, [self.given.seed, 2, start])  # the same noise each time
            tokens += count
            for piece in _pieces(batch, self.given.micro_batch):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.given.bfloat16):
                    loss += float(self.model(piece.to(self.device)))
        mean = float(self._sum(loss)) / tokens
        better = mean < self.state.best_loss
        if better:
            self.state.best_loss, self.state.best_epoch = mean, epoch
            self._save(BEST, {})
        samples = self._samples() if self.rank == 0 else []
        line = {"step": self.state.step, "epoch": epoch, "validation_loss": mean, "best": better, "samples": samples}
        self._log(line)
        self.state.seconds += time.monotonic() - began
        self.state.cpu_seconds += time.process_time() - cpu

    def _samples(self) -> list[str]:
        found = []
        for i, number in enumerate(self.validation[:SAMPLES]):
            batch = self.batches.make(self.validation[i : i + 1], slice(0, 1), np.random.default_rng(number))
            row = self.model.continue_greedily(batch.to(self.device), self.end, SAMPLE_TOKENS)[0]
            found.append(self.decode(row[: row.index(self.end)] if self.end in row else row).strip())
        return found

    # --- files ---

    def _checkpoint(self) -> None:
        self._fetch_losses()
        moments: dict[str, torch.Tensor] = {}
        for name, weight in self.weights.items():
            adam = self.optimizer.state[weight]
            moments |= {f"mean.{name}": adam["exp_avg"], f"square.{name}": adam["exp_avg_sq"]}
        state = asdict(self.state)
        state["cpu_seconds"] = float(self._sum(torch.tensor(self.state.cpu_seconds, dtype=torch.float64)))
        self._save(CHECKPOINT, moments, state)
        self.state.cpu_seconds = state["cpu_seconds"] if self.rank == 0 else 0.0
        self.saved = time.monotonic()

    def _save(self, name: str, more: dict[str, torch.Tensor], state: dict[str, Any] | None = None) -> None:
        if self.rank == 0:
            tensors = {name: tensor.detach().contiguous() for name, tensor in {**self.weights, **more}.items()}
            about = {"standing": json.dumps(state or asdict(self.state))}
            commit(self.folder / name, lambda path: safetensors.torch.save_file(tensors, path, metadata=about))

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if path.exists():
            with safetensors.safe_open(path, "pt", device="cpu") as file:
                self.state = TrainState(**json.loads(file.metadata()["standing"]))
                for name, weight in self.weights.items():
                    with torch.no_grad():
                        weight.copy_(file.get_tensor(name))
                    self.optimizer.state[weight] = {
                        "step": torch.tensor(float(self.state.step), device=self._place_of_step()),
                        "exp_avg": file.get_tensor(f"mean.{name}").to(self.device),
                        "exp_avg_sq": file.get_tensor(f"square.{name}").to(self.device),
                    }
            if self.rank:
                self.state.cpu_seconds = 0.0
        if self.rank == 0:
            _forget_later_lines(self.folder / LOG, self.state.step)
            self._log({"step": self.state.step, "total": self.total})

    def _place_of_step(self) -> torch.device:
        """Where AdamW keeps its count: the fused one on the device, the others on the host."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def _log(self, *lines: dict[str, Any]) -> None:
        if self.rank == 0:
            with open(self.folder / LOG, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))

    # --- among the workers ---

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all workers."""
        if self.workers == 1:
            return value
        found = value.to(self.device) if distributed.get_backend() == "nccl" else value.cpu()
        distributed.all_reduce(found)
        return found

    def _agree(self, seconds: float) -> bool:
        """Whether it is time for a checkpoint, by the clock of the first worker: all of them must say the same."""
        if self.workers > 1 and self.state.step % LOG_EVERY == 0:
            first = torch.tensor(seconds if self.rank == 0 else 0.0, dtype=torch.float64)
            return bool(self._sum(first) > CHECKPOINT_SECONDS)
        return self.workers == 1 and seconds > CHECKPOINT_SECONDS


def load_best(model: Trainable, folder: Path) -> None:
    """Give the model the weights of the epoch that validated best."""
    with safetensors.safe_open(folder / BEST, "pt", device="cpu") as file, torch.no_grad():
        for name, weight in model.trainable_parameters().items():
            weight.copy_(file.get_tensor(name))


def read_train_state(folder: Path) -> TrainState:
    """Where the loop in a folder is; at its beginning if there is no checkpoint."""
    if not (folder / CHECKPOINT).exists():
        return TrainState()
    with safetensors.safe_open(folder / CHECKPOINT, "pt", device="cpu") as file:
        return TrainState(**json.loads(file.metadata()["standing"]))


def count_parameters(path: Path) -> int:
    """How many numbers a file of weights holds; only its header is read."""
    with safetensors.safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """Return the batch in pieces of a size, at least one: a worker without rows still takes part in adding up
    gradients."""
    for start in range(0, max(1, len(batch)), size):
        yield batch[start : start + size]


def _forget_later_lines(path: Path, step: int) -> None:
    """Take the lines away that the loop is about to write again, and one that a kill cut off."""
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        commit(path, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8"))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf
