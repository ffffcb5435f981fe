"""The DAG nightly, for Airflow, of two use cases, one of which has no champion and so fails."""

from nightshift import use_cases
from nightshift.settings import PROJECT_ROOT

UNTRAINED = use_cases.CHURN.model_copy(update={"name": "untrained"})

use_cases.USE_CASES = (use_cases.CHURN, UNTRAINED)
_source = (PROJECT_ROOT / "dags" / "nightly.py").read_text()
exec(_source.replace('dag_id="nightly"', 'dag_id="nightly_of_two"'))
