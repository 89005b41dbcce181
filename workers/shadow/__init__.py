"""The shadow evaluation: sampling, truths, scores, exemplars, the canary."""
