"""The parts of a training step alone on a GPU: ceilings, attention, importance, a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from gpu_cases import EVEREST, StepCase
from gpu_rows import Row, Rows, product, timed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity

from everest.methods.importance import change_importance
from everest.models.mae import MaskedAutoencoder
from everest.video.pixels import normalize

BATCH = 256
CLIP = (3, 16, 224, 224)
KEPT = 470  # of 1568 tokens: rho_pre = 0.3, EVEREST Table 7
VIT_B = StepCase(name="vit-b", recipe=EVEREST, backbone="vit-b", batches=())

# Batch, heads, queries and keys; 64 channels a head.
ATTENTION = {
    "encoder": (256, 12, 156, 156),
    "decoder": (256, 6, 470, 470),
    "last decoder block": (256, 6, 314, 470),
    "VideoMAE decoder": (64, 6, 1568, 1568),
    "fine-tuning": (64, 12, 940, 940),
}
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def ceilings(seconds: float) -> Iterator[Row]:
    """The memory, products in each precision, the bus, and the launch of a kernel."""
    source = torch.empty(2**31, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    times = timed(partial(target.copy_, source), seconds=seconds)
    yield {"what": "copy of 8.6 GB", "tb_per_second": 2 * source.nbytes / times["ms"] / 1e9, **times}
    del source, target
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        row = product(8192, dtype, precision=precision, seconds=seconds)
        yield {"what": f"product 8192^3, {name}", **row}
    pinned = torch.empty(BATCH, *CLIP, dtype=torch.uint8, pin_memory=True)
    pageable = torch.empty(BATCH, *CLIP, dtype=torch.uint8)
    there = torch.empty_like(pageable, device="cuda")
    for name, clips, most in (("pinned", pinned, 50), ("pageable", pageable, 10)):
        times = timed(partial(there.copy_, clips, non_blocking=True), seconds=seconds, most=most)
        yield {
            "what": f"{BATCH} clips to the GPU, {name}",
            "gb_per_second": clips.nbytes / times["ms"] / 1e6,
        } | times
    one, calls = torch.zeros(1, device="cuda"), 20_000
    began = time.perf_counter()
    for _ in range(calls):
        one.add_(1)
    torch.cuda.synchronize()
    yield {"what": "launch of a small kernel", "microseconds": (time.perf_counter() - began) / calls * 1e6}


def attention(rows: Rows, seconds: float) -> None:
    """Each shape with each back-end; a back-end that does not have it is a row with its error."""
    for name in ATTENTION:
        rows.run(f"attention {name}", partial(_chosen, name))
        for backend in BACKENDS:
            rows.run(f"attention {name} {backend.name}", partial(_attention, name, backend, seconds))


def _packed(name: str) -> Tensor:
    """Queries, keys and values of one product, as in a block."""
    batch, heads, _, keys = ATTENTION[name]
    shape = (batch, keys, 3 * heads * 64)
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def _inputs(name: str, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, heads, queries, keys = ATTENTION[name]
    q, k, v = (part.unflatten(-1, (heads, 64)).transpose(1, 2) for part in packed.chunk(3, -1))
    return q[:, :, keys - queries :], k, v


def _chosen(name: str) -> Iterator[Row]:
    """The back-end that torch chooses."""
    yield {"chosen": SDPBackend(torch._fused_sdp_choice(*_inputs(name, _packed(name)))).name}


def _attention(name: str, backend: SDPBackend, seconds: float) -> Iterator[Row]:
    packed = _packed(name)
    batch, heads, queries, keys = ATTENTION[name]
    grad = torch.randn(batch, heads, queries, 64, device="cuda", dtype=torch.bfloat16)

    def forward() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*_inputs(name, packed))

    def forward_and_backward() -> None:
        forward().backward(grad)
        packed.grad = None

    flop = 4 * queries * keys * 64 * heads * batch
    for what, work, share in (("forward", forward, 1.0), ("with backward", forward_and_backward, 3.5)):
        times = timed(work, seconds=seconds / 4)
        rate = share * flop / times["ms"] / 1e9
        yield {"what": f"{name}, {what}", "backend": backend.name, "tflops": rate, **times}


def moving_frames(batch: int) -> Tensor:
    """Smooth random scenes that drift, with the noise of a camera: (batch, 3, 16, 224, 224) uint8."""
    _, frames, size, _ = CLIP
    scene = F.interpolate(
        torch.rand(batch, 3, 24, 24, device="cuda") * 220, size + 2 * frames, mode="bilinear"
    )
    drifting = [scene[:, :, 2 * t : 2 * t + size, t : t + size] for t in range(frames)]
    clips = torch.stack(drifting, dim=2)
    return (clips + torch.randn_like(clips).mul_(3)).clamp_(0, 255).byte()


@torch.no_grad()
def importance(seconds: float, *, batch: int = BATCH) -> Iterator[Row]:
    """Importance in each formulation, and the share of the kept tokens that float32 keeps, too."""
    model = VIT_B.build().model
    assert isinstance(model, MaskedAutoencoder)
    embed, clips = model.encoder.patch_embed, moving_frames(batch)
    compiled = torch.compile(change_importance, dynamic=False)
    works: dict[str, tuple[str, Callable[[], Tensor]]] = {
        "float32": ("highest", lambda: change_importance(normalize(clips), embed)),
        "tf32": ("high", lambda: change_importance(normalize(clips), embed)),
        "bytes": ("highest", lambda: change_importance(clips, embed)),
        "bytes, compiled": ("highest", lambda: compiled(clips, embed)),
    }
    kept: dict[str, Tensor] = {}
    for name, (precision, work) in works.items():
        torch.set_float32_matmul_precision(precision)
        times = timed(work, seconds=seconds / 2)
        ids = work().argsort(dim=1, descending=True, stable=True)[:, :KEPT]
        torch.set_float32_matmul_precision("highest")
        kept[name] = torch.zeros(batch, 1568, device="cuda").scatter_(1, ids, 1)
        same = ((kept[name] * kept["float32"]).sum(dim=1) / KEPT).cpu()
        yield {
            "what": f"importance, {name}",
            "kept_as_float32": same.mean().item(),
            "kept_as_float32_worst_clip": same.min().item(),
            **times,
        }


def profiled(rows: Rows) -> Iterator[Row]:
    """The kernels of two steps of ViT-B by their time, in a file."""
    step = VIT_B.build()
    clips = step.clips(BATCH, random=True)
    for _ in range(3):
        step.run(clips)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profile:
        for _ in range(2):
            step.run(clips)
        torch.cuda.synchronize()
    table = profile.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90)
    path = rows.folder / "profile.txt"
    path.write_text(table)
    yield {"file": path.name}
