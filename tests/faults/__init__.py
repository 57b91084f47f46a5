"""The kill suite: real workers that are ended or stopped at named points, and what must hold all the same.

``make faults`` runs all of it; ``test_faults.py`` is the part that every ``make test`` runs.
"""
