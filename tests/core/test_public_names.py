"""The names of `import mgk`, whatever else has been imported."""

import importlib
import subprocess
import sys

import mgk


def test_every_public_name_is_there():
    """Each name of __all__ is found, and is no module."""
    assert all(
        callable(getattr(mgk, name)) or name in ("HOOK_API_VERSION", "__version__")
        for name in mgk.__all__
    )


def test_pipeline_can_be_called_before_and_after_its_module_is_imported():
    """`mgk.pipeline(name)` works although `mgk_core.contract.pipeline` is a module too."""
    before = "import mgk; print(mgk.pipeline('textmodel').name)"
    done = subprocess.run(
        [sys.executable, "-c", before], capture_output=True, text=True, check=True
    )
    assert done.stdout == "textmodel\n"
    importlib.import_module("mgk_core.contract.pipeline")
    assert mgk.pipeline("textmodel").name == "textmodel"
