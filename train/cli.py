"""The `avpipe` command: the stages of `pipeline` with training and evaluation beside them. Light at import."""

import sys

from pipeline.cli import app
from pipeline.errors import AvpipeError


def main() -> None:
    """Run the command line; what a user can mend is one sentence on standard error and exit code 1."""
    try:
        app()
    except AvpipeError as error:
        print(f"avpipe: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("avpipe: interrupted; what is finished is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
