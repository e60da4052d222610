"""The front door: from videos with classes to a model with a summary, in one folder that can be resumed.

1. `options.py` and `request.py`: what was asked for, in DIR/project.json; the same resumes, another one is
   refused.
2. `lists.py`: class folders, lists, or recordings with annotations become lists in DIR/lists, or folds.
3. `project_plan.py`: suggests DIR/recipe.yaml, and how long all of it takes.
   `train.py`: pre-trains if asked, and compares the candidates.
   `feature_kinds.py` and `candidates.py`: what could classify the videos. `comparison.py`: trains it on the
   lists, or a fold. `choice.py`: the best by its loss.
4. `measure.py`: the accuracy beside chance, the most frequent class and a linear model on small images; the
   timelines of test recordings beside the bouts of a person; the accuracy over all folds together.
   `result.py`: what it found, in DIR/result.json.
5. `summary.py`: lines for people, with what to do next.

Files are written atomically, and each stage resumes its own run: a killed call goes on where it was.
"""
