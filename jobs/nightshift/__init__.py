"""Nightshift: batch machine learning whose predictions are in your Postgres by morning."""

import os

# Threads of XGBoost that wait for one another sleep, instead of spinning on the processor that the
# other is waiting for: on a busy machine a fit then takes a twentieth of the time. It is read once,
# when the library is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
