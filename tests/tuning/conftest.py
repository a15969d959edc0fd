"""Tests of the tuning room.

Its package sets what Ray reads when it is imported, so it comes before `ray`; and Ray reads the token once in a
process, so all tests share one, which is not the user's.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import captune.tuning

assert captune.tuning.__doc__
_folder = tempfile.mkdtemp(prefix="captune-token-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(_folder) / "auth_token")
