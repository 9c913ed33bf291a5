"""The pass engine: the contract of a pass, the registry, the run, the plan."""
