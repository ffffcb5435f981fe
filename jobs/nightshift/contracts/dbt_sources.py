"""The dbt source entry of each contract, as generated files in the dbt project."""

from pathlib import Path

import yaml

from nightshift.contracts import SOURCES, SourceContract, load_contract

HEADER = "# Generated from contracts/{source}.odcs.yaml by `make contracts`: change that file.\n"


def path_of(staging: Path, source: str) -> Path:
    """``<staging>/<source>/_<source>__sources.yml``."""
    return staging / source / f"_{source}__sources.yml"


def source_file(contract: SourceContract) -> str:
    """The YAML of a source: its columns, its key and its freshness."""
    stamps = {
        "_landed_date": "Date of the folder in which the file landed.",
        "_file_id": "The file's row in ops.landing_files.",
        "_row_number": "Position in the file; 1 is the first data row.",
    }
    columns = [{"name": c.name, "description": c.description} for c in contract.columns]
    for name, description in stamps.items():
        column: dict[str, object] = {"name": name, "description": description}
        if name == "_landed_date":
            column["data_tests"] = [
                _landed_within(contract, contract.freshness.warn_days, "warn"),
                _landed_within(contract, contract.freshness.error_days, "error"),
            ]
        columns.append(column)  # type: ignore[arg-type]
    document = {
        "version": 2,
        "sources": [
            {
                "name": "raw",
                "schema": "raw",
                "tables": [
                    {
                        "name": contract.source,
                        "description": contract.description,
                        "loaded_at_field": "_landed_date::timestamp",
                        "config": {"meta": {"owner": contract.owner, "version": contract.version}},
                        "columns": columns,
                    }
                ],
            }
        ],
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return HEADER.format(source=contract.source) + text


def _landed_within(contract: SourceContract, days: int, severity: str) -> dict[str, object]:
    return {
        "landed_within": {
            "name": f"source_{contract.source}_landed_within_{days}_days_of_as_of",
            "arguments": {"days": days},
            "config": {"severity": severity},
        }
    }


def write(staging: Path) -> list[Path]:
    """Write the file of each source that is not as it should be; the paths written."""
    written = []
    for source in SOURCES:
        path, text = path_of(staging, source), source_file(load_contract(source))
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written.append(path)
    return written


if __name__ == "__main__":
    from nightshift.settings import PROJECT_ROOT

    for changed in write(PROJECT_ROOT / "dbt_project" / "models" / "staging"):
        print(changed.relative_to(PROJECT_ROOT))
