"""Counts the fused kernels of compiled graphs, which no dispatch mode sees: the memory that they move."""

from __future__ import annotations

from typing import Any

import torch._inductor.config as inductor_config
from roofline import FP32_FLOPS, Meter
from torch._inductor.graph import GraphLowering
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.scheduler import BaseSchedulerNode, NopKernelSchedulerNode
from torch._inductor.virtualized import V


def _is_fused(node: BaseSchedulerNode) -> bool:
    """Whether it is a generated kernel: calls of libraries, such as products, are seen by the meter."""
    return not (node.is_extern() or isinstance(node, NopKernelSchedulerNode))


def meter_fused_kernels(meter: Meter) -> None:
    """Add the kernels of every graph that is compiled from now on to the meter, each time the graph runs.

    Their time is that of their memory traffic, as Inductor counts it for each kernel.
    """
    inductor_config.force_disable_caches = True  # a graph from the cache has no kernels to count
    create, run = CompiledFxGraph.__init__, CompiledFxGraph.__call__

    def created(self: Any, current_callable: Any, graph: GraphLowering, *rest: Any, **named: Any) -> None:
        create(self, current_callable, graph, *rest, **named)
        with V.set_graph_handler(graph):
            nodes = [node for node in graph.scheduler.nodes if _is_fused(node)]
            self.moved = [node.get_read_write_buffers_sizes() for node in nodes]

    def running(self: Any, inputs: Any) -> Any:
        if meter.is_counting:
            for moved in self.moved:
                meter.current.add(moved=moved, flops=0, rate=FP32_FLOPS)
        return run(self, inputs)

    CompiledFxGraph.__init__, CompiledFxGraph.__call__ = created, running
