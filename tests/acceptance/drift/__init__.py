"""The drift judgement end to end: real vectors, real scoring, a compressed clock."""
