"""`python -m rlvr`, also under torchrun."""

from rlvr.cli import main

raise SystemExit(main())
