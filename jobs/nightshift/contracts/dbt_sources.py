"""What dbt knows of each contract, as generated files in the dbt project: its source entry, and the
macro through which its staging model reads it."""

from pathlib import Path

import yaml

from nightshift.contracts import SOURCES, SourceContract, load_contract

_ORIGIN = "Generated from contracts/{source}.odcs.yaml by `make contracts`: change that file."
_STAMPS = {
    "_landed_date": "Date of the folder in which the file landed.",
    "_file_id": "The file's row in ops.landing_files.",
    "_row_number": "Position in the file; 1 is the first data row.",
}


def generated(contract: SourceContract) -> dict[Path, str]:
    """Path in the dbt project → text, of each file that is derived from a contract."""
    source = contract.source
    return {
        Path("models", "staging", source, f"_{source}__sources.yml"): source_file(contract),
        Path("macros", "landed", f"landed_{source}.sql"): landed_macro(contract),
    }


def landed_macro(contract: SourceContract) -> str:
    """A macro that selects a source's columns, those with personal data as pseudonyms.

    A column that the contract newly classifies as personal data then goes no further as it is.
    """
    columns = [
        f'{{{{ pseudonym("{c.name}") }}}} as {c.name}' if c.is_pii else c.name
        for c in contract.columns
    ]
    listed = ",\n        ".join([*columns, *_STAMPS])
    return (
        f"{{# {_ORIGIN.format(source=contract.source)} #}}\n"
        f"{{% macro landed_{contract.source}() -%}}\n"
        f"    select\n        {listed}\n"
        f'    from {{{{ source("raw", "{contract.source}") }}}}\n'
        "{%- endmacro %}\n"
    )


def source_file(contract: SourceContract) -> str:
    """The YAML of a source: its columns, its key and its freshness."""
    columns: list[dict[str, object]] = [
        {"name": c.name, "description": c.description}
        | ({"config": {"meta": {"pii": True}}} if c.is_pii else {})
        for c in contract.columns
    ]
    for name, description in _STAMPS.items():
        column: dict[str, object] = {"name": name, "description": description}
        if name == "_landed_date":
            column["data_tests"] = [
                _landed_within(contract, contract.freshness.warn_days, "warn"),
                _landed_within(contract, contract.freshness.error_days, "error"),
            ]
        columns.append(column)
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
    return f"# {_ORIGIN.format(source=contract.source)}\n{text}"


def _landed_within(contract: SourceContract, days: int, severity: str) -> dict[str, object]:
    return {
        "landed_within": {
            "name": f"source_{contract.source}_landed_within_{days}_days_of_as_of",
            "arguments": {"days": days},
            "config": {"severity": severity},
        }
    }


def write(project: Path) -> list[Path]:
    """Write each file of the dbt project that is not as it should be; the paths written."""
    written = []
    for source in SOURCES:
        for relative, text in generated(load_contract(source)).items():
            path = project / relative
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                written.append(path)
    return written


if __name__ == "__main__":
    from nightshift.settings import PROJECT_ROOT

    for changed in write(PROJECT_ROOT / "dbt_project"):
        print(changed.relative_to(PROJECT_ROOT))
