"""A tiny recipe for `everest profile`, and calls of the command."""

from functools import partial

from small_runs import called, json_of

CLIP = ("data.frames=4", "data.size=32")
TINY = ("model.backbone=vit-tiny", "model.tubelet=[2, 8, 8]", *CLIP, "model.depth=2")
profile_of = partial(called, "profile")
json_profile = partial(json_of, "profile")
