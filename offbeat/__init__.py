"""The front door of offbeat: the command line, the wiring and the demo."""
