"""The paper's tables in one command."""
