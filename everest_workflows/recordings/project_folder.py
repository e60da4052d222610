"""The names in a folder of `everest train`, which everest_workflows.project writes."""

from __future__ import annotations

from typing import Final

from everest.checkpoints.load import CHOSEN_FOLDER, TRAINED_FOLDER
from everest.system.moved_folder import PROJECT_FILE as PROJECT_FILE

MODEL_FOLDER: Final = CHOSEN_FOLDER  # the classifier that it delivers
FINETUNE_FOLDER: Final = TRAINED_FOLDER  # the run of the network
FOLDS_FOLDER: Final = "folds"  # a folder with a run for each fold
