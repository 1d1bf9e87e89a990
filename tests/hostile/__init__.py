"""A corpus of hostile programs, one small file each, and what runs them outside and inside the sandbox."""
