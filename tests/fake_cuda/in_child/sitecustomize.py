"""Imported by Python at its start: prepares a process that runs on the device that computes nothing."""

import os

if os.environ.get("FAKE_CUDA_REPORT"):
    import device_recorder

    device_recorder.start()
