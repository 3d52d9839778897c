"""The control plane: starts processes, plans attempts, watches jobs. Never imports torch."""
