"""Our classifier in OpenVINO Model API: the same top-1. Not part of the test suite, since it wants an environment of its own:

    python -m venv other && other/bin/pip install openvino-model-api
    edgeattn export sign-digits --peer peer
    other/bin/python tests/with_model_api.py peer.xml PICTURES ANSWERS.json

ANSWERS.json is a list of {file, label}, ours. Prints how many answers are the same; exits 1 unless all are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
from model_api.models import ClassificationModel


def main() -> None:
    """Compare."""
    model = ClassificationModel.create_model(sys.argv[1])
    wanted = json.loads(Path(sys.argv[3]).read_text())
    same = 0
    for one in wanted:
        found = model(cv2.imread(str(Path(sys.argv[2]) / one["file"]))).top_labels[0].name
        same += found == one["label"]
    print(f"{same} of {len(wanted)} answers are the same")
    sys.exit(same != len(wanted))


if __name__ == "__main__":
    main()
