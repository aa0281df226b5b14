"""`python -m avpipe.train.cli`."""

from avpipe.train.cli.main import main

main()
