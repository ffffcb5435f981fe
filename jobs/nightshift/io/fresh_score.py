"""Score a model folder's sample in a process of its own: ``python -m nightshift.io.fresh_score``.

Prints the SHA-256 of the scores. What training holds in memory cannot help here.
"""

import sys
from pathlib import Path

from nightshift.errors import NightshiftError
from nightshift.io.model_store import score_sample


def main() -> int:
    """Exit 0 with the digest on stdout, or 1 with the reason on stderr."""
    try:
        digest = score_sample(Path(sys.argv[1]))
    except NightshiftError as error:
        sys.stderr.write(f"{error.what}\n")
        return 1
    sys.stdout.write(f"{digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
