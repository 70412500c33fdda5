"""Runs first in every Python of an emulated board: where it starts itself anew, the emulator is to be started."""

import os
import sys

sys.executable = os.environ["EDGEQWEN_BOARD_PYTHON"]
