"""The page that on-call people open first: one snapshot a second, shared by everybody who looks."""
