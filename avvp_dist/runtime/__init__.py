"""The processes of a job: ranks, locks, signals, launchers, Ray."""
