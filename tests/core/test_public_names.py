"""The names of `import mgk_core as mgk`, whatever else has been imported."""

import importlib
import subprocess
import sys

import mgk_core as mgk


def test_every_public_name_is_there():
    """Each name of __all__ is found, and is no module."""
    assert all(callable(getattr(mgk, name)) or name == "HOOK_API_VERSION" for name in mgk.__all__)


def test_pipeline_can_be_called_before_and_after_its_module_is_imported():
    """`mgk.pipeline(name)` works although `mgk_core.pipeline` is a module too."""
    before = "import mgk_core as mgk; print(mgk.pipeline('textmodel').name)"
    done = subprocess.run([sys.executable, "-c", before], capture_output=True, text=True, check=True)
    assert done.stdout == "textmodel\n"
    importlib.import_module("mgk_core.pipeline")
    assert mgk.pipeline("textmodel").name == "textmodel"
