"""The measured run of the command amn run."""
