"""The core of mgk, in rooms; `import mgk` has the public names.

From top to ground: `testing`, `tools`, `run`, `config`, `host`, `record` beside `model`, `contract`. A room imports
only what is below it. Plugins may import `contract`, `model` and `testing`.
"""

__version__ = "0.1.0"
