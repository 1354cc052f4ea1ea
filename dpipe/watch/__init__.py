"""Who listens to a run: terminal, page on the scheduler, run.json."""
