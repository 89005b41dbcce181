"""Worker processes: started, replaced, rolled over, stopped."""
