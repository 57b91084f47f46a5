"""``python -m offbeat`` is the program ``offbeat``."""

from offbeat.cli import main

main()
