"""Starting a job's processes, and ending all of them."""
