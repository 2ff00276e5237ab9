"""Memory of a run before it runs: what a rank holds, traced without a device, and what devices have."""
