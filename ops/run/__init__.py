"""The measured run of `amn run`."""
