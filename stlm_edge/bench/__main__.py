"""Run `stlm-bench` as `python -m stlm_edge.bench`."""

from stlm_edge.commands.bench import main

main()
