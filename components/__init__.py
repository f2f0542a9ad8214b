"""KFP steps, one file each: a body unpacks records, calls `understudy.platform.steps.<step>.run`, packs records.

The images are named once, here. Locally the installed package serves and the names are not used;
kfp.local expects "python" in an image that runs Python. These modules keep their annotations as objects
(no `from __future__ import annotations`), because kfp reads them.
"""

STEPS_IMAGE = "understudy/steps-python:0.1.0"  # CPU: docker/steps.Dockerfile
TRAIN_IMAGE = "understudy/train-python:0.1.0"  # CUDA: docker/train.Dockerfile
