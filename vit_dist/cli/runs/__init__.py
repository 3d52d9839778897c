"""The verbs that look at runs and act on them: status, logs, stop, cancel, requeue, resume, checkpoint."""
