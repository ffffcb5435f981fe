"""XGBoost without its wrappers for scikit-learn, and without scipy.sparse until somebody asks.

It imports scikit-learn where that is installed, and with it pandas and scipy.stats: 2.4 of the 3.2
seconds of CPU that the import takes. A process that scores has no use for them. What does need the
wrappers asks for them by :func:`with_wrappers`. Of the rest scipy.sparse was more than a half,
which only some of XGBoost's functions want, and import by themselves.
"""

import importlib
import sys
from types import ModuleType

__all__ = ["with_wrappers", "xgb"]

# that of plotting is tried before that of the wrappers, and ends it
_LEFT_OUT = ("sklearn", "xgboost.plotting")

# XGBoost's core names it, and looks into it only when it is given a sparse matrix
_SPARSE = "scipy.sparse"

if "sklearn" in sys.modules or "xgboost" in sys.modules:
    import xgboost as xgb
else:
    sys.modules.update(dict.fromkeys(_LEFT_OUT))  # type: ignore[arg-type]  # their import fails
    sys.modules.setdefault(_SPARSE, _empty := ModuleType(_SPARSE))
    try:
        import xgboost as xgb
    finally:
        for _name in _LEFT_OUT:
            del sys.modules[_name]
        if sys.modules[_SPARSE] is _empty:
            del sys.modules[_SPARSE]


def with_wrappers() -> None:
    """Give XGBoost its wrappers, before ``xgboost.spark``, which needs them, is imported."""
    import xgboost.compat

    if not xgboost.compat.SKLEARN_INSTALLED:
        importlib.reload(xgboost.compat)
        importlib.reload(xgboost)
