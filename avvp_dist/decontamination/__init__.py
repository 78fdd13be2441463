"""What must not be trained on."""
