"""The names of the sources: what a DAG file may know of contracts, for it loads in milliseconds."""

from importlib.resources import files

CONTRACT_SUFFIX = ".odcs.yaml"
SOURCES: tuple[str, ...] = tuple(
    sorted(
        file.name.removesuffix(CONTRACT_SUFFIX)
        for file in files("nightshift").joinpath("contracts").iterdir()
        if file.name.endswith(CONTRACT_SUFFIX)
    )
)
"""Every source that has a contract, by name."""
