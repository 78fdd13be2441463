"""What is trained and what is done with it: pretraining, fine-tuning, refinement, evaluation."""
