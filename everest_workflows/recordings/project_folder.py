"""The names in a folder of `everest train`, which everest_workflows.project writes."""

from __future__ import annotations

from typing import Final

from everest.checkpoints.load import CHOSEN_FOLDER, TRAINED_FOLDER

PROJECT_FILE: Final = "project.json"  # what was asked for, and the lists
MODEL_FOLDER: Final = CHOSEN_FOLDER  # the classifier that it selects
FINETUNE_FOLDER: Final = TRAINED_FOLDER  # the run of the network
FOLDS_FOLDER: Final = "folds"  # a folder with a run for each fold
RESULT_FILE: Final = "result.json"  # in the folder of a project, or of a fold
SELECTED: Final = "selected"  # the outputs of the model that it selects, among those of all candidates
