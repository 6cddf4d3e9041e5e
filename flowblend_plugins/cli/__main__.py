"""Entry point of ``python -m flowblend_plugins.cli``."""

from . import main

main()
