"""The layers hold, and the checks that hold them can fail."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "jobs" / "nightshift"
STAGES = (
    *("ingest", "quality", "transform", "features"),
    *("training", "gates", "scoring", "publishing", "receipt", "monitoring", "alerts", "erasure"),
    "backfill",
)
IMPURE = {"psycopg2", "adbc_driver_postgresql", "mlflow", "subprocess", "nightshift.io.warehouse"}
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def imported(source: str) -> set[str]:
    """Every dotted name that a module imports, and each prefix of it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(n.split(".")[: i + 1]) for n in names for i in range(n.count(".") + 1)}


def test_the_layers_of_the_package_hold() -> None:
    done = subprocess.run([LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_stage_that_imports_another_breaks_the_contract(tmp_path: Path) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = "\n    ".join(contracts["contracts"][0]["layers"])
    package = tmp_path / "nightshift"
    for stage in (
        *("cli", "demo", "doctor", "pipeline", "orchestration", "task_outcomes", "task_notes"),
        *("io", "spec", "use_cases", "feature_groups", "services", "demo_data", "scaffold"),
        *STAGES,
    ):
        (package / stage).mkdir(parents=True)
        (package / stage / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "scoring" / "run.py").write_text("from nightshift import features\n")
    (tmp_path / ".importlinter").write_text(
        "[importlinter]\nroot_package = nightshift\n\n[importlinter:contract:1]\nname = layers\n"
        f"type = layers\ncontainers = nightshift\nlayers =\n    {layers}\n"
    )
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "nightshift.scoring.run -> nightshift.features" in done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_impure_in_its_run_alone(stage: str) -> None:
    assert (PACKAGE / stage / "run.py").is_file()
    for file in (PACKAGE / stage).glob("*.py"):
        if not file.name.endswith("run.py"):
            assert not imported(file.read_text()) & IMPURE, file.relative_to(ROOT)


def test_the_check_of_impure_imports_sees_each_form() -> None:
    assert "psycopg2" in imported("from psycopg2.extras import Json")
    assert "nightshift.io.warehouse" in imported("from nightshift.io import warehouse")
    assert "mlflow" in imported("def f():\n    import mlflow.xgboost")


@pytest.mark.parametrize("part", ["spec.py", "feature_groups", "use_cases"])
def test_what_a_dag_file_loads_imports_only_the_standard_library_and_pydantic(part: str) -> None:
    path = PACKAGE / part
    allowed = {*sys.stdlib_module_names, "pydantic", "nightshift"}
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        roots = {name.split(".")[0] for name in imported(file.read_text())}
        assert roots <= allowed, file.relative_to(ROOT)


def loaded_by(*modules: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, {', '.join(modules)}; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(told.stdout.split())


def test_a_night_starts_without_what_only_training_needs() -> None:
    heavy = {"sklearn", "scipy.stats", "mlflow", "optuna", "matplotlib"}
    assert loaded_by("nightshift.pipeline") & heavy == set()
    assert loaded_by("nightshift.training.run") >= heavy - {"mlflow"}
    scoring = loaded_by("nightshift.scoring.run", "nightshift.publishing.run")
    lazy = {"pandas", "scipy.special", "scipy.sparse", "duckdb", "pyspark"}
    assert scoring & {*lazy, *heavy} == set()


def test_xgboost_takes_sparse_matrices_though_its_import_did_not_load_them() -> None:
    told = (
        "import sys, numpy as np; from nightshift.xgboost_core import xgb;"
        " assert 'scipy.sparse' not in sys.modules;"
        " booster = xgb.train({}, xgb.DMatrix(np.eye(3), [0, 1, 0]), 1);"
        " from scipy.sparse import csr_matrix;"
        " assert len(booster.inplace_predict(csr_matrix(np.eye(3)))) == 3"
    )
    subprocess.run([sys.executable, "-c", told], check=True)


@pytest.mark.parametrize("first", ["nightshift.scoring.run", "sklearn"])
def test_training_on_spark_has_xgboosts_wrappers_whatever_was_imported_before(first: str) -> None:
    told = f"import {first}, nightshift.training.distributed as d; from sklearn import base;" + (
        " from xgboost import Booster, core; from nightshift.xgboost_core import xgb;"
        " from xgboost.sklearn import XGBModel;"
        " assert issubclass(XGBModel, base.BaseEstimator); assert xgb.Booster is core.Booster;"
        " d.SparkXGBClassifier(num_workers=2).getOrDefault('num_workers')"
    )
    subprocess.run([sys.executable, "-c", told], check=True)
