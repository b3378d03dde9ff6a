"""Distil: `edgeattn train` with a teacher, which is one training as any other; a first argument names the teacher's run.

python tools/distill.py runs/teacher photos --out runs/student
"""

from __future__ import annotations

import sys

from edgeattn.cli import main

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: distill.py TEACHER_RUN DATA --out RUN   (the other options are those of `edgeattn train`)")
    teacher = sys.argv.pop(1)
    sys.argv[1:] = ["train", *sys.argv[1:], "--teacher", teacher]
    main()
