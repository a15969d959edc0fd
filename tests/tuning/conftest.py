"""Tests of the tuning room.

Ray reads the token once in a process, so all tests share one, which is not the user's. Some start nodes of their own,
with the variables that captune sets while it is connected.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from captune.tuning.environment import RAY_VARIABLES

for _name, _value in RAY_VARIABLES.items():
    os.environ.setdefault(_name, _value)
_folder = tempfile.mkdtemp(prefix="captune-token-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(_folder) / "auth_token")
