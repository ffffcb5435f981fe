"""Faults on purpose: what disturbs a run, what watches it, and what must hold afterwards.

``tests/integration/test_chaos.py`` does some of it at each test run; ``make chaos`` does it for as
long as it is told to.
"""
