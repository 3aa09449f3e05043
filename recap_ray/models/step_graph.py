"""One decoding step as a CUDA graph: captured once for a shape, then started with a single call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class StepGraphs:
    """Steps (tokens (R,), places (R,), position (1,)) -> logits (R, V), one graph a shape, recorded at its first call.

    Everything else that a step reads or writes must keep its address as long as these graphs live. The logits are put
    into one tensor that all of them share: each call overwrites those of the one before. No two run at once, so they
    share their memory too.
    """

    def __init__(self, out: torch.Tensor):
        self.out = out  # (R at most, V)
        self.graphs: dict[tuple[int, ...], _Graph] = {}
        self.pool: Any = None
        self.stream: Any = None

    def run(
        self, key: tuple[int, ...], step: Step, tokens: torch.Tensor, places: torch.Tensor, position: int
    ) -> torch.Tensor:
        """Return the logits of the step of the shape `key`; `step` is called only to be recorded."""
        if tokens.device.type == "cpu":  # has no graphs: tests try the fixed shapes so
            return step(tokens, places, torch.tensor([position]))
        if key not in self.graphs:
            if self.pool is None:
                self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            self.graphs[key] = _Graph(self, step, tokens, places, position)
        return self.graphs[key].start(tokens, places, position)


class _Graph:
    def __init__(self, shared: StepGraphs, step: Step, tokens: torch.Tensor, places: torch.Tensor, position: int):
        self.tokens, self.places = tokens.clone(), places.clone()
        self.position = torch.tensor([position], device=tokens.device)
        self.out = shared.out[: len(tokens)]
        shared.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(shared.stream):  # libraries set themselves up for a stream outside of a capture
            step(self.tokens, self.places, self.position)
        torch.cuda.current_stream().wait_stream(shared.stream)
        self.graph = torch.cuda.CUDAGraph()
        # The other threads of the process (Ray's) may go on using CUDA meanwhile.
        with torch.cuda.graph(self.graph, shared.pool, shared.stream, capture_error_mode="thread_local"):
            self.out.copy_(step(self.tokens, self.places, self.position))

    def start(self, tokens: torch.Tensor, places: torch.Tensor, position: int) -> torch.Tensor:
        self.tokens.copy_(tokens)
        self.places.copy_(places)
        self.position.fill_(position)
        self.graph.replay()
        return self.out
