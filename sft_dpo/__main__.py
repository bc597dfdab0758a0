"""`python -m sft_dpo`, also under torchrun."""

from sft_dpo.cli import main

raise SystemExit(main())
