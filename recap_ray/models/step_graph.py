"""One decoding step as a CUDA graph: captured once for a shape, then started with a single call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class StepGraph:
    """A step (tokens (R,), places (R,), position (1,)) -> logits (R, V), recorded at its first call.

    Everything else that the step reads or writes must keep its address from call to call (SlotCache, `static`).
    The logits are overwritten by the next call.
    """

    pool: Any = None  # memory that all graphs share: no two of them ever run at once

    def __init__(self, step: Step):
        self.step = step
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: torch.Tensor, places: torch.Tensor, position: int) -> torch.Tensor:
        """The logits of the step."""
        if tokens.device.type == "cpu":  # has no graphs; tests see the fixed shapes so
            return self.step(tokens, places, torch.tensor([position]))
        if self.graph is None:
            self._capture(tokens, places, position)
        self.tokens.copy_(tokens)
        self.places.copy_(places)
        self.position.fill_(position)
        assert self.graph is not None
        self.graph.replay()
        return self.logits

    def _capture(self, tokens: torch.Tensor, places: torch.Tensor, position: int) -> None:
        self.tokens, self.places = tokens.clone(), places.clone()
        self.position = torch.tensor([position], device=tokens.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # cuBLAS sets its workspaces up outside of a graph
            self.step(self.tokens, self.places, self.position)
        torch.cuda.current_stream().wait_stream(stream)
        StepGraph.pool = StepGraph.pool or torch.cuda.graph_pool_handle()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=StepGraph.pool, capture_error_mode="thread_local"):
            self.logits = self.step(self.tokens, self.places, self.position)
