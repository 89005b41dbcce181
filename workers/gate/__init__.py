"""The budget that AMN workers share, and the fallback tiers that they see."""
