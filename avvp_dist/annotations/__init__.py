"""LLP's annotation files, refined labels, video ids."""
