"""``python -m mgk_cli`` is ``mgk``."""

from mgk_cli.main import main

main()
